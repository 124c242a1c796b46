# /// script
# requires-python = ">=3.11"
# dependencies = ["cohere>=5"]
# ///
"""Cohere's own client, both versions of its API."""

import os

import cohere

DOCUMENTS = ["A cat sleeps on the sofa.", "The train leaves at noon."]
ASKED = {"model": "tiny/rerank", "query": "Where is the cat?", "documents": DOCUMENTS}
v2 = cohere.ClientV2(api_key=os.environ["KEY"], base_url=os.environ["SERVED"])
results = v2.rerank(**ASKED).results
assert results[0].relevance_score >= results[1].relevance_score
assert len(v2.rerank(**ASKED, top_n=1).results) == 1
v1 = cohere.Client(api_key=os.environ["KEY"], base_url=os.environ["SERVED"])
assert len(v1.rerank(**(ASKED | {"documents": [{"text": each} for each in DOCUMENTS]})).results) == 2
