"""The templates of the expression table, one module a part of the language."""
