"""Word lists of the stories: names, things and what people do with them, by theme."""

from __future__ import annotations

from dataclasses import dataclass, field

_GIRLS = """
    Mia Ava Emma Olivia Sophia Isabella Amelia Luna Ella Grace Chloe Nora Lily Zoe Hannah Layla Aria Ruby
    Maya Alice Clara Naomi Priya Fatima Aisha Yuki Mei Ingrid Freya Elena Rosa Lucia Carmen Ana Sara Leila
    Nadia Tara Wendy Julia"""
_BOYS = """
    Leo Noah Liam Ethan Lucas Mason Logan Jacob Henry Owen Caleb Isaac Jack Ryan Adam Max Felix Oscar Hugo
    Omar Ali Ravi Arjun Kenji Hiro Wei Chen Ivan Boris Pedro Diego Mateo Carlos Marco Paulo Tomas Samir
    Kofi Tariq Eric"""
GIRLS, BOYS = tuple(_GIRLS.split()), tuple(_BOYS.split())

# What a template's {field} may be filled with when it asks for no number.
FILLERS: dict[str, tuple[str, ...]] = {
    "friends": ("friends", "cousins", "neighbors", "classmates", "teammates", "roommates", "siblings"),
    "friend": ("friend", "cousin", "neighbor", "classmate", "teammate", "roommate", "sister", "brother"),
    "relative": ("mother", "father", "aunt", "uncle", "grandmother", "grandfather", "godmother", "boss"),
    "color": ("red", "blue", "green", "small", "old", "plain", "light"),
    "color2": ("yellow", "purple", "orange", "large", "new", "striped", "heavy"),
    "season": ("spring", "summer", "autumn", "winter", "Christmas", "Easter", "evening", "midnight"),
    "event": ("party", "wedding", "picnic", "festival", "parade", "contest", "exhibition", "ceremony"),
    "chore": ("babysitting", "gardening", "tutoring", "cleaning", "painting", "delivering", "typing"),
    "thing": (
        "jacket", "guitar", "camera", "bicycle", "tent", "skateboard", "watch", "lamp", "telescope", "drum",
        "keyboard", "blanket", "haircut", "backpack", "scooter", "painting", "carpet", "mirror", "piano",
    ),
    "things": (
        "sandwiches", "posters", "scarves", "socks", "notepads", "toys", "umbrellas", "sweaters", "wallets",
        "burgers", "pizzas", "smoothies", "tickets", "plants", "gloves", "belts", "brushes", "keychains",
    ),
    "place": (
        "library", "museum", "market", "bakery", "theater", "school", "park", "station", "pool", "stadium",
        "zoo", "mall", "farm", "beach", "harbor", "airport", "castle", "garden", "bank", "hotel",
    ),
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = {
    2: ("twice", "2 times"),
    3: ("three times", "3 times"),
    4: ("four times", "4 times"),
    5: ("five times",),
}
PARTS = {
    2: ("half", "half", "50%"),
    3: ("a third", "a third"),
    4: ("a quarter", "25%"),
    5: ("a fifth", "20%"),
    10: ("a tenth", "10%"),
}


@dataclass(frozen=True)
class Theme:
    """A world of things, and the verbs that go with them."""

    kind: str  # items | activity | money: which templates apply
    items: tuple[str, ...]
    boxes: tuple[str, ...] = ()
    verbs: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _items(items: str, boxes: str, gets: str, drops: str, makes: str) -> Theme:
    verbs = {"gets": gets, "drops": drops, "makes": makes}
    return Theme(
        "items",
        tuple(items.split()),
        tuple(boxes.split()),
        {name: tuple(words.split(", ")) for name, words in verbs.items()},
    )


def _activity(items: str, verbs: str) -> Theme:
    return Theme("activity", tuple(items.split()), verbs={"runs": tuple(verbs.split(", "))})


ITEM_THEMES = (
    _items(
        "apple pear peach plum orange lemon mango fig apricot lime melon kiwi banana coconut grapefruit",
        "basket crate box bag",
        "picks, buys, finds",
        "eats, sells, gives away, donates",
        "picks, gathers, collects",
    ),
    _items(
        "muffin cookie cupcake roll bagel pie donut waffle pancake biscuit brownie scone tart pretzel",
        "tray box bag tin",
        "bakes, buys, makes",
        "eats, sells, gives away, donates",
        "bakes, makes, prepares",
    ),
    _items(
        "marble robot puzzle doll kite balloon block puppet whistle figurine magnet dinosaur truck yoyo",
        "box bag bucket chest",
        "buys, wins, finds",
        "loses, sells, trades, donates, gives away",
        "collects, wins",
    ),
    _items(
        "pencil pen crayon marker notebook eraser ruler folder envelope stapler sticker card stamp sharpener",
        "pack box drawer case",
        "buys, orders, finds",
        "uses, sells, loses, gives away",
        "collects",
    ),
    _items(
        "rose tulip lily daisy orchid violet poppy sunflower daffodil carnation fern seedling lilac",
        "bunch bouquet vase tray",
        "picks, buys, cuts",
        "sells, gives away, throws away",
        "picks, cuts, gathers",
    ),
    _items(
        "bracelet necklace candle quilt mug bowl ring badge bead ribbon button keychain lantern",
        "box bag case pouch",
        "makes, buys, receives",
        "sells, gives away, breaks",
        "makes, crafts, finishes",
    ),
    _items(
        "book comic magazine novel atlas map poster album postcard photo print catalog newspaper",
        "box carton stack crate",
        "buys, borrows, receives",
        "sells, donates, returns, recycles",
        "collects, prints",
    ),
    _items(
        "egg potato carrot onion tomato pumpkin cabbage turnip pepper cucumber radish beet leek squash",
        "sack crate basket bin",
        "harvests, buys, gathers",
        "sells, eats, cooks, donates",
        "harvests, gathers, washes",
    ),
    _items(
        "shell pebble stone coin fossil gem crystal feather acorn pinecone seed arrowhead nugget",
        "jar bag bucket tin",
        "finds, collects, digs up",
        "loses, trades, gives away, sells",
        "collects, finds, gathers",
    ),
    _items(
        "ball racket bat glove helmet jersey medal trophy ticket cap net whistle cone",
        "bag box locker sack",
        "buys, orders, receives",
        "sells, loses, donates, gives away",
        "collects",
    ),
    _items(
        "cup plate spoon napkin straw sandwich hat fork banner tablecloth tray pitcher",
        "pack stack box case",
        "buys, brings, borrows",
        "uses, hands out, donates, sells",
        "washes, collects",
    ),
)
ACTIVITY_THEMES = (
    _activity("mile kilometer lap", "runs, jogs, walks, cycles, hikes, skates"),
    _activity("page chapter story poem article", "reads, reviews, studies"),
    _activity("puzzle riddle equation quiz", "solves, completes"),
    _activity("line page letter verse", "writes, types, copies"),
    _activity("song tune match game", "plays, records"),
    _activity("fence portrait tile wall", "paints, cleans"),
    _activity("window car dish floor", "washes, scrubs"),
    _activity("word poem dance lesson", "learns, practices"),
    _activity("step stair floor ladder", "climbs"),
)
MONEY_THEME = Theme("money", ("dollar",))
THEMES = (*ITEM_THEMES, *ACTIVITY_THEMES, MONEY_THEME)


def plural(noun: str) -> str:
    """`peaches` of `peach`; every noun of the lists is regular."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    if noun.endswith("z"):
        return f"{noun}zes"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh", "tomato", "potato")) else f"{noun}s"


def _every_word() -> dict[str, tuple[str, ...]]:
    """By field of a template, all that can stand there; numbers and names apart."""
    items = tuple(noun for theme in THEMES for noun in theme.items)
    boxes = tuple(noun for theme in THEMES for noun in theme.boxes)
    words = dict(FILLERS)
    words["items"] = tuple(map(plural, items))
    words["item"] = tuple(noun for theme in ACTIVITY_THEMES for noun in theme.items)  # no other template has it
    words["box"], words["boxes"] = boxes, tuple(map(plural, boxes))
    words["others"] = words["items"]
    words["times"] = tuple(said for choices in TIMES.values() for said in choices)
    words["half"] = tuple(said for choices in PARTS.values() for said in choices)
    words["day"] = words["day2"] = words["day3"] = DAYS
    words["S"], words["he"], words["his"] = ("He", "She"), ("he", "she"), ("his", "her")
    for theme in THEMES:
        for name, verbs in theme.verbs.items():
            words[name] = words.get(name, ()) + verbs
    return words


WORDS = _every_word()
