"""Language models, encoders, rerankers and endpoints for budwood's plugins. Importing it imports no model library."""

from budwood_models.control_tokens import without_control_tokens
from budwood_models.encoders import Encoder, load_encoder
from budwood_models.endpoint import Endpoint
from budwood_models.errors import ModelError
from budwood_models.generation import Conversation, Generator, Reply
from budwood_models.language_model import LanguageModel, load_language_model
from budwood_models.local import LocalGenerator
from budwood_models.recorded import Recorded
from budwood_models.rerankers import Reranker, load_reranker

__all__ = [
    "Conversation",
    "Encoder",
    "Endpoint",
    "Generator",
    "LanguageModel",
    "LocalGenerator",
    "ModelError",
    "Recorded",
    "Reply",
    "Reranker",
    "load_encoder",
    "load_language_model",
    "load_reranker",
    "without_control_tokens",
]
