"""The Gram matrix of an image's views: similarities between the views of one image, label-free.

Source       re-implemented from the abstract of arXiv 2112.11447, which compares the modalities of
             a sample; here they are the fixed views.
Differs      from `similarity` in comparing the views of one image instead of the images of a batch.
Cost         negligible. Needs two views of an image in one batch.
"""

from kdep_bench.objectives.view_gram import ViewGram

method = dict(
    name="view_gram",
    family="relation",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["pooled", "views"],
    source="re-implementation from the abstract of arXiv 2112.11447",
    objective=dict(type=ViewGram, weight=20.0),
    align=None,
    transform=None,
)
