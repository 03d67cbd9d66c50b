"""No edit at all: the model as it is, the row every table starts with."""

from acedit.editing.methods.method import Method

METHODS = (Method(name="base", summary="no edit: the model as it is"),)
