"""Language models, encoders, rerankers and endpoints for budwood's plugins."""
