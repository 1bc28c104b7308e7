"""A LangChain document compressor: ``ContextualCompressionRetriever(base_compressor=EvidenceCompressor(picker=...), ...)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict

from budwood_lcqa_selector.compressors import kept


class EvidenceCompressor(BaseDocumentCompressor):
    """Keeps the documents that the question needs, unchanged but for ``metadata["rationale"]``.

    ``picker``: a :class:`budwood_lcqa_selector.selecting.Picker`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    picker: Any

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        places, found = kept(query, [document.page_content for document in documents], self.picker)
        return [
            documents[place].model_copy(
                update={"metadata": {**documents[place].metadata, "rationale": found.rationale}}
            )
            for place in places
        ]
