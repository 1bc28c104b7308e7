"""Language models, encoders, rerankers and endpoints for budwood's plugins. Importing it imports no model library."""

from budwood_models.endpoint import Endpoint
from budwood_models.errors import ModelError
from budwood_models.generation import Conversation, Generator, Reply
from budwood_models.language_model import LanguageModel, load_language_model
from budwood_models.local import LocalGenerator
from budwood_models.recorded import Recorded

__all__ = [
    "Conversation",
    "Endpoint",
    "Generator",
    "LanguageModel",
    "LocalGenerator",
    "ModelError",
    "Recorded",
    "Reply",
    "load_language_model",
]
