"""Language models, encoders, rerankers and endpoints for budwood's plugins. Importing it imports no model library."""

from budwood_models.errors import ModelError
from budwood_models.generation import Conversation, Generator, Reply
from budwood_models.language_model import LanguageModel, load_language_model
from budwood_models.local import LocalGenerator

__all__ = [
    "Conversation",
    "Generator",
    "LanguageModel",
    "LocalGenerator",
    "ModelError",
    "Reply",
    "load_language_model",
]
