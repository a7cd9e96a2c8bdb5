"""Flatness of the linear probe's loss around the backbone's weights: Hessian, loss slices.

Source   Pham et al., arXiv 2206.08491, who compare the Hessians of a network and of its
         self-distilled students; Li et al., NeurIPS 2018 (filter-normalised directions); Foret et
         al., ICLR 2021 (sharpness).
Cost     about 40 products with the Hessian of 256 images per backbone, a minute or two on one core
         for a 64 px student.
"""

from kdep_bench.probes.flatness import Flatness

probe = dict(
    name="flatness",
    about="curvature of the linear probe's loss over the backbone's weights; lower is flatter",
    source="Li et al., NeurIPS 2018; Foret et al., ICLR 2021; Pham et al., arXiv 2206.08491",
    type=Flatness,
    folder="classify",
    c=0.1,
    images=256,
    iterations=30,
    traces=10,
    radii=(0.001,),
    distances=(0.1, 0.3),
    directions=5,
)
