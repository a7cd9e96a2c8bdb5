"""The Gram matrix of an image's views: a label-free relation within a sample, not between samples.

Source       re-implemented from the abstract of arXiv 2112.11447; its modalities are the fixed
             views here.
Differs      from `similarity` in what is compared: the views of one image instead of the batch.
Cost         negligible; needs two views of an image in one batch.
"""

from kdep_bench.objectives.view_gram import ViewGram

method = dict(
    name="view_gram",
    family="relation",
    labels_used=False,
    reconstruction=True,
    needs=["pooled", "views"],
    source="re-implementation from the abstract of arXiv 2112.11447",
    objective=dict(type=ViewGram, weight=20.0),
    align=None,
    transform=None,
)
