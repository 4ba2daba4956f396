// The op gaussian_focal_loss_from_boxes, for the ops that contain it.
#pragma once

#include "common.h"

#include <tuple>

namespace detops {

std::tuple<Tensor, Tensor> gaussian_focal_loss_from_boxes(const Tensor logits, const Tensor centers, const Tensor radii,
                                                          const Tensor labels, const std::optional<Tensor> sample_sizes,
                                                          const std::optional<Tensor> negative_weight,
                                                          const std::optional<Tensor> scale, double factor,
                                                          double alpha, double gamma, double pos_weight,
                                                          double neg_weight, bool with_gradient);

}  // namespace detops
