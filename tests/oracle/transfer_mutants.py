"""Faults that tests of this folder find in conversions and in the images of detectors: ``file, old, new, test``."""

LOADER = "moco_plugin/transfer/train_loader.py"
TRAINER = "moco_plugin/transfer/trainer.py"
FORMATS = "moco_plugin/checkpoints/formats.py"
BATCHES = "tests/oracle/test_global_batches.py"
POSITIONS = f"{BATCHES}::test_processes_loader_processes_and_iterations"
BYTES = "tests/oracle/test_conversions.py::test_every_layout_gives_the_same_bytes"

MUTANTS: list[tuple[str, str, str, str]] = [
    # augmentation depends on the process
    (LOADER, "with seeded(self.seed, position):", "with seeded(self.seed, position, comm.get_rank()):", POSITIONS),
    # augmentation depends on what ran before, as detectron2's
    (LOADER, "with seeded(self.seed, position):", "if position >= 0:", POSITIONS),
    # an image is augmented the same way each time
    (LOADER, "with seeded(self.seed, position):", "with seeded(self.seed, index):", POSITIONS),
    # every process takes the first one's images
    (LOADER, "batch[first : first + self.share]", "batch[: self.share]", POSITIONS),
    # positions are counted in each process
    (LOADER, "iteration * self.size + first)", "iteration * self.share)", POSITIONS),
    # images are grouped in each process, as in detectron2
    (
        LOADER,
        "yield from enumerate(batch[first : first + self.share], iteration * self.size + first)",
        "yield from enumerate(batch[self.rank :: self.size // self.share], iteration * self.size + first)",
        POSITIONS,
    ),
    # the seed of the order is each run's own
    (LOADER, "        with seeded(seed):  # detectron2", "        if seed >= 0:  # detectron2", POSITIONS),
    # a resumed run begins with the first images
    (TRAINER, "self._trainer.data_loader.start = self.start_iter", "pass", f"{BATCHES}::test_killed_and_resumed[c4-1]"),
    # a resumed run forgets momentum and learning rate, as detectron2 0.6
    (
        TRAINER,
        'self._trainer.load_state_dict(state_dict["_trainer"])',
        "pass",
        f"{BATCHES}::test_killed_and_resumed[c4-1]",
    ),
    # the model draws from where the process's generator is
    (
        TRAINER,
        "        if self.cfg.SEED >= 0:\n",
        "        if self.iter < 0:\n",
        f"{BATCHES}::test_killed_and_resumed[c4-1]",
    ),
    # the loader draws its seed from the model's generator
    (LOADER, "generator=torch.Generator(),", "generator=None,", f"{BATCHES}::test_killed_and_resumed[c4-1]"),
    # precise batch norm goes on where it stopped
    (
        TRAINER,
        "hook._data_loader.period = self.cfg.TEST.PRECISE_BN.NUM_ITER",
        "pass",
        f"{BATCHES}::test_killed_and_resumed[c4-1]",
    ),
    # RetinaNet counts anew
    (
        TRAINER,
        "self.checkpointer.model.loss_normalizer = means[comm.get_rank() % len(means)]",
        "pass",
        f"{BATCHES}::test_killed_and_resumed[retinanet-1]",
    ),
    # every process takes the first one's count
    (TRAINER, "means[comm.get_rank() % len(means)]", "means[0]", f"{BATCHES}::test_killed_and_resumed[retinanet-2]"),
    # RetinaNet's loss is compiled anew, and rounds otherwise in a process's first steps
    (
        TRAINER,
        "torch.jit.optimized_execution(False)",
        "nullcontext()",
        f"{BATCHES}::test_killed_and_resumed[retinanet-1]",
    ),
    # each process tests an equal number of images, and one is dropped
    (
        TRAINER,
        "        return build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False))",
        "        loader = build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False))\n"
        "        share = loader.sampler._size // comm.get_world_size()\n"
        "        loader.sampler._local_indices = loader.sampler._local_indices[:share]\n"
        "        return loader",
        f"{BATCHES}::test_train_net_on_voc",
    ),
    # every process tests all images
    (
        TRAINER,
        "        return build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False))",
        "        loader = build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False))\n"
        "        loader.sampler._local_indices = range(loader.sampler._size)\n"
        "        return loader",
        f"{BATCHES}::test_train_net_on_voc",
    ),
    # a tensor's memory layout is the source's
    (
        "moco_plugin/checkpoints/fill.py",
        "value.to(dtype, copy=True, memory_format=torch.contiguous_format)",
        "value.to(dtype, copy=True)",
        f"{BYTES}[lightly-train-resnet]",
    ),
    # the name of a temporary file stays in a torch file
    (FORMATS, "torch.save(with_metadata, file)", "torch.save(with_metadata, path)", f"{BYTES}[lightly-train-vit]"),
    # safetensors orders its metadata by chance
    (FORMATS, 'written["__metadata__"] = header', "pass", f"{BYTES}[timm-vit]"),
    # what timm's folders say of every network stays in the arguments
    ("moco_plugin/checkpoints/to_timm.py", 'arguments.get("in_chans") == 3', "False", f"{BYTES}[timm-resnet]"),
    # tensors of a detectron2 file stand in the source's order
    (
        "moco_plugin/transfer/to_detectron2.py",
        'np.asarray(model[name], order="C") for name in sorted(model)',
        'np.asarray(model[name], order="C") for name in sorted(model, key=id)',
        f"{BYTES}[detectron2-vit]",
    ),
]
