"""Faults that tests/oracle/test_evaluations.py must find.

Of each: a file of the package, -k of a test that fails, what is wrong, a text in the file and the text in its place.
"""

import re

_MUTANTS = """
evaluation/features.py [knn-csv] features: the last batch is left out
- collate_fn=keep_whole,
+ collate_fn=keep_whole, drop_last=True,
evaluation/features.py [plain_search] features: the crop ratio is ignored
- (view.image_size, view.crop_ratio)
+ (view.image_size, 1.0)
evaluation/features.py [plain_search] features: they are not normalised
- F.normalize(features, dim=1) if normalized else
+ features if normalized else
evaluation/features.py [retrieve-csv] features: their indices begin again with each batch
- kept.append(part[positions])
+ kept.append(part[positions] % batch_size)
evaluation/features.py [plain_search and bands] features: another range of the values of deep images
- decoded_for(view.value_range,
+ decoded_for([0.0, 4095.0],
data/datasets.py [plain_search] labels: shifted by one image
- else int(labels[index]), ""
+ else int(labels[index - 1]), ""
evaluation/knn.py [plain_search] kNN: the temperature is ignored
- / temperature).exp()
+ / 0.1).exp()
evaluation/knn.py [plain_search] kNN: one neighbour too many votes
- neighbours[:, :k], weights[:, :k]
+ neighbours[:, : k + 1], weights[:, : k + 1]
evaluation/neighbours.py [plain_search and same] kNN: an image votes for itself
- own[rows]] = -torch.inf
+ own[rows]] += 0
probes/retrieval.py [plain_search] retrieval: only the nearest counts
- right[:, :k].any(dim=1)
+ right[:, :1].any(dim=1)
probes/multilabel.py [several_labels] several labels: votes are not divided by their sum
- (similarities / temperature).softmax(dim=1)
+ (similarities / temperature).exp()
probes/omnibenchmark.py [realms] OmniBenchmark: the L2 weight is chosen by the test images
- chosen_by = val if protocol == "v2"
+ chosen_by = val if protocol == "v1"
probes/cached_features.py [cached_features] cached features: the classifier is fitted without the held-out images
- final = fit_learning_rates(features, labels,
+ final = fit_learning_rates(features[fitted], labels[fitted],
probes/cached_features.py [cached_features] cached features: a small share of the labels is all of them
- kept = torch.isin(known.indices, rows)
+ kept = known.indices >= 0
probes/linear_classifiers.py [cached_features] cached features: they are not standardised
- - self.mean) / self.scale
+ - self.mean)
evaluation/classifier.py [plain_loop and linear-resnet] training: views of an epoch are those of the first
- with seeded(self.seed, position)
+ with seeded(self.seed, position % len(self))
evaluation/classifier.py [plain_loop and linear-resnet] training: views are not flipped
- v2.RandomHorizontalFlip(),
+
evaluation/linear.py [plain_loop and linear-resnet] training: another smallest crop
- data.min_scale)
+ 0.2)
evaluation/linear.py [plain_loop and linear-resnet] training: the learning rate is not that of the batch
- return scaled_lr(config.optimizer, images,
+ return scaled_lr(config.optimizer, config.optimizer.reference_batch_size,
evaluation/classifier.py [plain_loop and finetune-resnet] training: tested with the backbone in training mode
- super().train(mode)
+ super().train(True)
evaluation/linear.py [plain_loop and linear-resnet] training: test views have the crop of pre-training
- crop_ratio=data.crop_ratio, **options
+ crop_ratio=None, **options
data/order.py [linear-zip] processes: padding counts in the loss
- return images, max(0, min(share, images - share * self.rank))
+ return share * self.processes, share
evaluation/classifier.py [finetune-zip] processes: the mean over processes, whatever their number of images
- reduction="sum") * self.trainer.world_size / whole
+ reduction="mean")
evaluation/linear.py [linear-csv or linear-zip] processes: each tests all images of the first
- range(rank, len(shown), processes)
+ range(0, len(shown), processes)
evaluation/classifier.py [linear-csv or linear-zip] processes: accuracies are averaged, not counted
- reduce(self.counts, reduce_op
+ reduce(self.counts / self.counts.sum(), reduce_op
evaluation/classifier.py [linear-csv or linear-zip] processes: only the first one's images count
- counts = self.trainer.strategy.reduce(self.counts, reduce_op="sum")
+ counts = self.counts
data/listing.py [linear-idx] sources: a folder's classes are in the order of texts
- sort_classes(parents)
+ tuple(sorted(set(parents)))
sources/zip.py [retrieve-zip] sources: an archive's images are in another order than the folder's
- sorted(images, key=lambda name: name.split("/"))
+ sorted(images)
checkpoints/fill.py [knn-csv] layout: weights are read as they lie in memory
- value.to(dtype, copy=True, memory_format=torch.contiguous_format)
+ value.to(dtype, copy=True).as_strided(value.shape, torch.empty(value.shape).stride())
"""
MUTANTS: list[tuple[str, str, str, str]] = [
    (f"moco_plugin/{file}", old, new, expression)
    for file, expression, old, new in re.findall(r"^(\S+) \[(.+?)\] .+\n- (.+)\n\+ ?(.*)$", _MUTANTS, re.M)
]
