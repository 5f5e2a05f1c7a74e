"""Forms that are built from the spec: what a field is called, means, measures and allows comes from its declaration."""

from cellweave.app.forms.fields import FormField, form_fields
from cellweave.app.forms.specform import SpecForm
from cellweave.app.forms.weights import LossWeightsForm, present_terms

__all__ = ["FormField", "LossWeightsForm", "SpecForm", "form_fields", "present_terms"]
