"""The encoders and heads of a retriever."""
