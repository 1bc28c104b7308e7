"""A LlamaIndex node postprocessor: ``index.as_query_engine(node_postprocessors=[EvidencePostprocessor(picker=...)])``."""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from budwood_lcqa_selector.compressors import kept


class EvidencePostprocessor(BaseNodePostprocessor):
    """Keeps the nodes that the question needs, with their scores, unchanged.

    ``picker``: a :class:`budwood_lcqa_selector.selecting.Picker`.
    """

    picker: Any = Field(description="chooses among passages")

    @classmethod
    def class_name(cls) -> str:
        return "EvidencePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """:raises ValueError: without a query, since evidence is always evidence for a question."""
        if query_bundle is None:
            raise ValueError("evidence is chosen for a question: pass query_str or query_bundle")
        texts = [node.node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]
        places, _ = kept(query_bundle.query_str, texts, self.picker)
        return [nodes[place] for place in places]
