"""Text that cannot speak with a chat template's voice.

A tokenizer reads the string of a control token as that token wherever it stands, so a passage that holds
``<|im_end|>\\n<|im_start|>assistant`` would end the user's turn and begin the model's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def without_control_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """``text`` with a space behind the first character of each control token's string, which makes it ordinary text.

    Control tokens are those that the tokenizer calls special. One of a single character becomes a space. Text without any comes
    back as it is.
    """
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    control = {*added, *tokenizer.all_special_tokens} - {""}
    if not any(token in text for token in control):
        return text
    strings = "|".join(map(re.escape, control))  # looked for at every place, as they may overlap
    return re.sub(
        rf"(?=(?:{strings}))(.)", lambda first: first[1] * (first[1] not in control) + " ", text, flags=re.DOTALL
    )
