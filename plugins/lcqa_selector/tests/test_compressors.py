"""The picker inside LangChain and LlamaIndex, with the libraries themselves."""

from __future__ import annotations

import logging

import pytest

from budwood_lcqa_selector.parsing import Selection
from budwood_lcqa_selector.worlds import fact_chain

ROW = fact_chain(3, hops=2, pool=6)
GOLD = [place for place, passage in enumerate(ROW.passages) if passage.id in ROW.gold_sets[0]]


class Knows:
    """A picker that finds the evidence by its text, or answers with a malformed answer."""

    def __init__(self, error=None):
        self.error, self.asked = error, []

    def choose(self, row):
        self.asked.append(row)
        wanted = {ROW.passages[place].text for place in GOLD}
        ids = tuple(passage.id for passage in row.passages if passage.text in wanted)
        return Selection((), error=self.error) if self.error else Selection(ids, "both facts")


class TestLangChain:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("langchain_core")

    def documents(self):
        from langchain_core.documents import Document

        return [Document(page_content=p.text, metadata={"place": i}) for i, p in enumerate(ROW.passages)]

    def compressor(self, picker):
        from budwood_lcqa_selector.compressors.langchain import EvidenceCompressor

        return EvidenceCompressor(picker=picker)

    def test_keeps_the_evidence(self):
        documents = self.documents()
        found = self.compressor(Knows()).compress_documents(documents, ROW.question)
        assert [document.metadata for document in found] == [{"place": i, "rationale": "both facts"} for i in GOLD]
        assert [document.page_content for document in found] == [ROW.passages[i].text for i in GOLD]
        assert all("rationale" not in document.metadata for document in documents), "what was given is not changed"

    def test_in_a_chain(self):
        """Behind a retriever of the library, in a runnable sequence."""
        from langchain_core.retrievers import BaseRetriever
        from langchain_core.runnables import RunnableLambda

        documents, compressor, picker = self.documents(), None, Knows()
        compressor = self.compressor(picker)

        class Everything(BaseRetriever):
            def _get_relevant_documents(self, query, *, run_manager):
                return documents

        chain = RunnableLambda(lambda question: compressor.compress_documents(Everything().invoke(question), question))
        assert [document.metadata["place"] for document in chain.invoke(ROW.question)] == GOLD
        assert picker.asked[0].question == ROW.question

    async def _asynchronously(self):
        return await self.compressor(Knows()).acompress_documents(self.documents(), ROW.question)

    def test_asynchronously(self):
        import asyncio

        assert len(asyncio.run(self._asynchronously())) == len(GOLD)

    def test_malformed_keeps_all_and_says_so(self, caplog):
        with caplog.at_level(logging.WARNING):
            found = self.compressor(Knows("no_json")).compress_documents(self.documents(), ROW.question)
        assert len(found) == 6
        assert "malformed (no_json): all 6 passages are kept" in caplog.text

    def test_no_documents(self):
        assert self.compressor(Knows()).compress_documents([], ROW.question) == []


class TestLlamaIndex:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("llama_index.core")

    def nodes(self):
        from llama_index.core.schema import NodeWithScore, TextNode

        return [
            NodeWithScore(node=TextNode(text=p.text, id_=p.id), score=1 / (i + 1)) for i, p in enumerate(ROW.passages)
        ]

    def postprocessor(self, picker):
        from budwood_lcqa_selector.compressors.llama_index import EvidencePostprocessor

        return EvidencePostprocessor(picker=picker)

    def test_keeps_the_evidence(self):
        nodes = self.nodes()
        found = self.postprocessor(Knows()).postprocess_nodes(nodes, query_str=ROW.question)
        assert found == [nodes[i] for i in GOLD]

    def test_needs_a_question(self):
        with pytest.raises(ValueError, match="evidence is chosen for a question"):
            self.postprocessor(Knows()).postprocess_nodes(self.nodes())

    def test_malformed_keeps_all_and_says_so(self, caplog):
        with caplog.at_level(logging.WARNING):
            found = self.postprocessor(Knows("truncated")).postprocess_nodes(self.nodes(), query_str=ROW.question)
        assert len(found) == 6
        assert "malformed (truncated)" in caplog.text
