"""The `[task]` table of an experiment file: one frozen config class a task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Base of every config class: immutable, strict about types, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TaskBase(Frozen):
    """What every task can do to its rewards."""

    overlong_penalty: float = Field(
        default=0.0, ge=0, description="Largest deduction for length (DAPO): grows linearly over the buffer."
    )
    overlong_buffer: int | None = Field(
        default=None,
        ge=1,
        description="Tokens before max_new_tokens where it starts; a fifth of it by default.",
    )


class ArithmeticConfig(TaskBase):
    """Chains and nested expressions of small integers, e.g. `12+34-(7+5)=`."""

    name: Literal["arithmetic"] = "arithmetic"
    min_terms: int = Field(default=3, ge=2, le=8, description="Fewest operands of an expression.")
    max_terms: int = Field(default=3, ge=2, le=8, description="Most operands of an expression.")
    max_operand: int = Field(default=99, ge=9, le=9999, description="Operands are 1..max_operand.")
    operators: str = Field(default="+-", pattern=r"^[+*-]{1,3}$", description="Which of + - * occur.")
    nesting: float = Field(default=0.0, ge=0, le=1, description="Share of problems with parentheses.")
    guesses: float = Field(
        default=0.0, ge=0, lt=1, description="Share of guessed answers in what the warm start learns from."
    )

    @model_validator(mode="after")
    def _ordered(self) -> ArithmeticConfig:
        if self.min_terms > self.max_terms:
            raise ValueError(f"min_terms ({self.min_terms}) is above max_terms ({self.max_terms})")
        if self.nesting > 0 and self.max_terms < 3:
            raise ValueError("nesting: parentheses need max_terms of at least 3")
        return self


class WordProblemsConfig(TaskBase):
    """Synthetic grade-school word problems with a long-tailed vocabulary."""

    name: Literal["word_problems"] = "word_problems"
    min_steps: int = Field(default=2, ge=2, le=6, description="Fewest reasoning steps.")
    max_steps: int = Field(default=6, ge=2, le=6, description="Most reasoning steps.")
    max_number: int = Field(default=1000, ge=20, le=1000, description="No number in a problem exceeds this.")
    distractors: float = Field(default=0.3, ge=0, le=1, description="Share of problems with an irrelevant fact.")

    @model_validator(mode="after")
    def _ordered(self) -> WordProblemsConfig:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps ({self.min_steps}) is above max_steps ({self.max_steps})")
        return self


class Gsm8kConfig(TaskBase):
    """The real GSM8K, from the hub or from local parquet files."""

    name: Literal["gsm8k"] = "gsm8k"
    path: str | None = Field(default=None, description="Local parquet of training rows, instead of the hub.")
    eval_path: str | None = Field(
        default=None, description="Local parquet of evaluation rows; without it, path is split by text hash."
    )
    revision: str = Field(default="main", description="Revision of the hub dataset openai/gsm8k.")
    vocab_size: int = Field(default=2048, ge=300, description="Byte-level BPE vocabulary of from-scratch models.")


TaskConfig = Annotated[ArithmeticConfig | WordProblemsConfig | Gsm8kConfig, Field(discriminator="name")]
