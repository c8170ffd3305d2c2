"""Faults that tests/oracle/test_evaluations.py must find: (file, text in it, text in its place, -k of a test that fails)."""

_EVALUATION = "moco_plugin/evaluation/"
MUTANTS: list[tuple[str, str, str, str]] = [
    # features: the last batch is left out
    (f"{_EVALUATION}features.py", "collate_fn=keep_whole)", "collate_fn=keep_whole, drop_last=True)", "knn-csv"),
    # features: the crop ratio is ignored
    (f"{_EVALUATION}features.py", "(view.image_size, view.crop_ratio)", "(view.image_size, 1.0)", "plain_search"),
    # features: they are not normalised
    (
        f"{_EVALUATION}features.py",
        "F.normalize(features, dim=1) if normalized else",
        "features if normalized else",
        "plain_search",
    ),
    # features: their numbers begin again with each batch
    (f"{_EVALUATION}features.py", "labels, part[places]", "labels, part[places] % batch_size", "retrieve-csv"),
    # features: another range of the values of deep images
    (
        f"{_EVALUATION}features.py",
        "decoded_for(view.value_range,",
        "decoded_for([0.0, 4095.0],",
        "plain_search and bands",
    ),
    # labels: shifted by one image
    ("moco_plugin/data/datasets.py", 'else int(labels[index]), ""', 'else int(labels[index - 1]), ""', "plain_search"),
    # kNN: the temperature is ignored
    (f"{_EVALUATION}knn.py", "/ temperature).exp()", "/ 0.1).exp()", "plain_search"),
    # kNN: one neighbour too many votes
    (
        f"{_EVALUATION}knn.py",
        "neighbours[:, :k], weights[:, :k]",
        "neighbours[:, : k + 1], weights[:, : k + 1]",
        "plain_search",
    ),
    # kNN: an image votes for itself
    (f"{_EVALUATION}neighbours.py", "own[rows]] = -torch.inf", "own[rows]] += 0", "plain_search and same"),
    # retrieval: only the nearest counts
    (f"{_EVALUATION}retrieval.py", "right[:, :k].any(dim=1)", "right[:, :1].any(dim=1)", "plain_search"),
    # several labels: votes are not divided by their sum
    (
        f"{_EVALUATION}multilabel.py",
        "(similarities / temperature).softmax(dim=1)",
        "(similarities / temperature).exp()",
        "several_labels",
    ),
    # OmniBenchmark: the L2 weight is chosen by the test images
    (
        f"{_EVALUATION}omnibenchmark.py",
        'chosen_by = val if protocol == "v2"',
        'chosen_by = val if protocol == "v1"',
        "realms",
    ),
    # cached features: the classifier is fitted without the held-out images
    (
        f"{_EVALUATION}fast.py",
        "final = fit_learning_rates(features, labels,",
        "final = fit_learning_rates(features[fitted], labels[fitted],",
        "cached_features",
    ),
    # cached features: a small share of the labels is all of them
    (f"{_EVALUATION}fast.py", "kept = torch.isin(known.numbers, rows)", "kept = known.numbers >= 0", "cached_features"),
    # cached features: they are not standardised
    (f"{_EVALUATION}probe.py", "- self.mean) / self.scale", "- self.mean)", "cached_features"),
    # training: views of an epoch are those of the first
    (
        f"{_EVALUATION}classifier.py",
        "with seeded(self.seed, position)",
        "with seeded(self.seed, position % len(self))",
        "plain_loop and linear-resnet",
    ),
    # training: views are not flipped
    (f"{_EVALUATION}classifier.py", "v2.RandomHorizontalFlip(), ", "", "plain_loop and linear-resnet"),
    # training: another smallest crop
    (f"{_EVALUATION}classify.py", "data.min_scale)", "0.2)", "plain_loop and linear-resnet"),
    # training: the learning rate is not that of the batch
    (
        f"{_EVALUATION}classify.py",
        "return lr * images / optimizer.reference_batch_size if",
        "return lr if",
        "plain_loop and linear-resnet",
    ),
    # training: tested with the backbone in training mode
    (
        f"{_EVALUATION}classifier.py",
        "        super().train(mode)\n",
        "        super().train(True)\n",
        "plain_loop and finetune-resnet",
    ),
    # training: test views have the crop of pre-training
    (
        f"{_EVALUATION}classify.py",
        "crop_ratio=config.data.crop_ratio,",
        "crop_ratio=None,",
        "plain_loop and linear-resnet",
    ),
    # processes: padding counts in the loss
    (
        "moco_plugin/data/order.py",
        "return images, max(0, min(share, images - share * self.rank))",
        "return share * self.processes, share",
        "linear-zip",
    ),
    # processes: the mean over processes, whatever their number of images
    (
        f"{_EVALUATION}classifier.py",
        'reduction="sum") * self.trainer.world_size / whole',
        'reduction="mean")',
        "finetune-zip",
    ),
    # processes: each tests all images of the first
    (
        f"{_EVALUATION}classify.py",
        "range(rank, len(shown), processes)",
        "range(0, len(shown), processes)",
        "linear-csv or linear-zip",
    ),
    # processes: accuracies are averaged, not counted
    (
        f"{_EVALUATION}classifier.py",
        "reduce(self.counts, reduce_op",
        "reduce(self.counts / self.counts.sum(), reduce_op",
        "linear-csv or linear-zip",
    ),
    # processes: only the first one's images count
    (
        f"{_EVALUATION}classifier.py",
        'counts = self.trainer.strategy.reduce(self.counts, reduce_op="sum")',
        "counts = self.counts",
        "linear-csv or linear-zip",
    ),
    # sources: a folder's classes are in the order of texts
    ("moco_plugin/data/listing.py", "tuple(sort_classes(parents))", "tuple(sorted(set(parents)))", "linear-idx"),
    # sources: an archive's images are in another order than the folder's
    (
        "moco_plugin/data/zip_images.py",
        'sorted(images, key=lambda name: name.split("/"))',
        "sorted(images)",
        "retrieve-zip",
    ),
    # layout: weights are read as they lie in memory
    (
        "moco_plugin/checkpoints/fill.py",
        "value.to(dtype, copy=True, memory_format=torch.contiguous_format)",
        "value.to(dtype, copy=True).as_strided(value.shape, torch.empty(value.shape).stride())",
        "knn-csv",
    ),
]
