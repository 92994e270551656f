"""Everything that happens to a model: settings, data, training, evaluation, counting, tracking."""

import models as models  # first: it silences what torchvision, timm and fvcore say as they are imported
