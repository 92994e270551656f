"""Everything that happens to a model: settings, data, training, evaluation, counting, tracking."""

import models as models  # first: it silences warnings that torchvision, timm and fvcore print on import
