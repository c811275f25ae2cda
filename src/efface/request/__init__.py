"""What is asked for, and the files that it is read from."""

from efface.request.lists import read_concepts, read_lines
from efface.request.plurals import forms_of
from efface.request.request import KINDS, Concept, Request

__all__ = ["KINDS", "Concept", "Request", "forms_of", "read_concepts", "read_lines"]
