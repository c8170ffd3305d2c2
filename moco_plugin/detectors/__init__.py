"""Detection on own data: from any usual format to a trained detector, its predictions and a comparison."""

import moco_plugin.transfer  # noqa: F401  (prepares detectron2)
