"""Word lists of worked solutions, most frequent first: their Zipf tails are the rare tokens."""

from __future__ import annotations

from drpo_bench.tasks.zipf import Zipf

_SENTENCE_ADVERBS = """
    Clearly Again Hence Thus Therefore Here Soon Later Surely Naturally Obviously Indeed Evidently Certainly
    Afterwards Accordingly Consequently Subsequently Presently Meanwhile Moreover Furthermore Besides
    Likewise Similarly Instead Still Today Overall Logically Formally Numerically Basically Essentially
    Effectively Practically Technically Arithmetically Mathematically Typically Usually Normally Generally
    Commonly Frequently Occasionally Sometimes Often Always Actually Really Truly Honestly Frankly
    Seriously Literally Admittedly Undoubtedly Unquestionably Undeniably Indisputably Definitely Absolutely
    Positively Plainly Apparently Presumably Seemingly Supposedly Allegedly Arguably Conceivably Possibly
    Perhaps Maybe Luckily Fortunately Happily Thankfully Mercifully Gladly Cheerfully Joyfully Merrily
    Hopefully Ideally Preferably Importantly Crucially Critically Notably Remarkably Interestingly Curiously
    Surprisingly Amazingly Astonishingly Strikingly Tellingly Significantly Incidentally Coincidentally
    Strangely Oddly Funnily Ironically Predictably Unsurprisingly Understandably Inevitably Necessarily
    Ultimately Eventually Finally Lastly Momentarily Immediately Instantly Promptly Shortly Forthwith
    Straightaway Thereupon Whereupon Thereby Thereafter Hereafter Henceforth Nonetheless Nevertheless
    Regardless Notwithstanding Conversely Alternatively Equally Correspondingly Comparatively Relatively
    Proportionally Specifically Particularly Especially Precisely Exactly Roughly Briefly Simply Concretely
    Explicitly Implicitly Theoretically Hypothetically Provisionally Tentatively Initially Originally"""
_MANNER_ADVERBS = """
    simply now quickly easily just also directly carefully readily neatly safely correctly calmly swiftly
    smoothly gladly surely kindly briefly rapidly exactly precisely properly cleanly clearly gently slowly
    steadily patiently quietly silently boldly bravely proudly happily cheerfully eagerly keenly warmly
    smartly cleverly wisely skillfully deftly nimbly expertly ably capably competently efficiently
    effectively effortlessly painlessly comfortably confidently securely soundly solidly firmly strictly
    rigorously thoroughly completely fully wholly entirely totally perfectly flawlessly faultlessly
    accurately faithfully reliably dependably consistently regularly routinely methodically systematically
    logically rationally sensibly reasonably fairly justly honestly truthfully sincerely earnestly
    seriously solemnly soberly gravely modestly humbly meekly politely courteously graciously gracefully
    elegantly stylishly beautifully nicely sweetly softly tenderly lovingly fondly affectionately
    generously freely openly publicly privately secretly discreetly stealthily cautiously warily prudently
    attentively watchfully alertly vigilantly mindfully thoughtfully pensively dreamily absently idly
    lazily sleepily wearily tirelessly diligently industriously busily actively energetically vigorously
    forcefully powerfully strongly mightily fiercely hotly passionately ardently fervently zealously
    enthusiastically excitedly breathlessly hastily hurriedly speedily briskly promptly instantly
    immediately abruptly suddenly spontaneously instinctively intuitively mechanically automatically
    formally officially informally casually lightly playfully jokingly humorously wittily merrily
    joyfully jubilantly triumphantly victoriously gloriously majestically royally grandly lavishly
    richly plainly frugally economically cheaply thriftily tidily orderly punctually duly dutifully
    obediently loyally devotedly resolutely decisively stubbornly doggedly persistently"""
_VERBS = """
    find get compute see count obtain determine derive establish reach write note record
    read check confirm verify evaluate estimate assess tally measure deduce infer ascertain identify discover
    uncover reveal learn state give show present report list examine inspect review study analyze consider
    explore resolve settle solve secure gain produce generate form build construct extract fetch gather
    collect draw spot notice observe recognize name mark fix conclude announce declare proclaim mention
    describe explain express address tackle handle process approach attack treat track trace locate seek
    pursue chase hunt grasp understand picture imagine visualize model frame sketch map chart plot log file
    register jot scribble pen update complete finish crack unlock unravel untangle decode decipher compile
    assemble prepare provide supply furnish deliver offer return restate clarify illustrate demonstrate prove
    justify quantify gauge judge weigh rate value appraise audit number enumerate detail outline summarize
    capture catch grab pick choose select isolate separate highlight underline emphasize stress memorize
    remember recall retain keep hold store save bank pocket claim accept admit acknowledge affirm assert
    maintain suggest propose submit publish print type enter insert place position set install arrange
    organize sort classify label tag title christen welcome greet celebrate praise admire enjoy savor
    cherish treasure"""
_NOUNS = """
    count total number amount tally sum figure quantity result value share balance score level size stock
    supply store pile lot heap stack set load measure mark reading outcome answer standing position state
    status volume mass bulk body extent range reach scope scale rate grade rank tier degree stage point
    record log account ledger report statement entry listing register inventory holding possession property
    fortune wealth treasure hoard reserve fund pool bank pot kitty collection gathering assembly group batch
    bunch cluster bundle package parcel portion ration helping allotment allowance quota lump chunk segment
    section fraction segmentation haul catch harvest yield crop output production gain return reward prize
    achievement accomplishment progress performance contribution effort"""


_LATER = ["Then", "Next", "So", "Now", "Also", *_SENTENCE_ADVERBS.split()]
_FIRST = ["First", "Firstly", "So", "Now", *reversed(_SENTENCE_ADVERBS.split())]
OPENERS = Zipf(_FIRST)  # begin the first step
CONNECTIVES = Zipf(_LATER)  # begin every other step
ADVERBS = Zipf(_MANNER_ADVERBS.split())
VERBS = Zipf(_VERBS.split())
NOUNS = Zipf(_NOUNS.split())  # what somebody's amount is called
