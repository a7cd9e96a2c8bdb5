"""Classification: a linear probe on frozen features, and fine-tuning of the whole network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kdep_bench.data.checks import check_image_folder
from kdep_bench.devices import compute_device
from kdep_bench.errors import KdepError
from kdep_bench.results.records.samples import Samples
from kdep_bench.transfer import mm_config, samples
from kdep_bench.transfer.base import MEAN, STD, MMTask, ProgressFn, Task
from kdep_bench.transfer.counts import SplitCount, compare
from kdep_bench.transfer.recipes import check_probe

SPLITS = ("train", "val", "test")


def _classifier(
    student: Mapping[str, Any], checkpoint: Path, classes: int, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """mmpretrain's ImageClassifier with the student's backbone and `classes` outputs."""
    return dict(
        type="ImageClassifier",
        data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True, num_classes=classes),
        backbone=mm_config.backbone_cfg(
            student,
            checkpoint,
            None,
            frozen_stages=recipe["frozen_stages"],
            norm_eval=recipe["norm_eval"],
        ),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(
            type="LinearClsHead",
            num_classes=classes,
            in_channels=int(student["width"]),
            loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
            topk=(1,),
        ),
    )


def _dataset(root: Path, classes: Sequence[str], pipeline: list[dict[str, Any]]) -> dict[str, Any]:
    """The images of `root`, which has one folder per class."""
    return dict(
        type="KdepFolders",
        data_root=str(root),
        data_prefix="",
        metainfo=dict(classes=tuple(classes)),
        pipeline=pipeline,
    )


def _test_pipeline(px: int) -> list[dict[str, Any]]:
    """The shorter edge resized to `px` pixels, and the centre of `px` x `px` pixels."""
    return [
        dict(type="LoadImageFromFile"),
        dict(type="ResizeEdge", scale=px, edge="short", interpolation="area"),
        dict(type="CenterCrop", crop_size=px),
        dict(type="PackInputs"),
    ]


def _train_pipeline(px: int, scale: Sequence[float]) -> list[dict[str, Any]]:
    """Random crops of a fraction `scale` (low, high) of the image's area, at `px` x `px` pixels."""
    return [
        dict(type="LoadImageFromFile"),
        dict(
            type="RandomResizedCrop",
            scale=px,
            crop_ratio_range=tuple(scale),
            interpolation="area",
        ),
        dict(type="RandomFlip", prob=0.5, direction="horizontal"),
        dict(type="PackInputs"),
    ]


def _cfg(
    root: Path,
    splits: Mapping[str, str],
    student: Mapping[str, Any],
    checkpoint: Path,
    seed: int,
    work_dir: Path,
    recipe: Mapping[str, Any],
) -> Any:
    """The mmengine Config of a classifier, for folders of class folders.

    Args:
        root: folder with the splits.
        splits: folder below `root` for "train" and for "test".
        student, checkpoint, seed, work_dir: see `Task.build_cfg`.
        recipe: settings of the training.
    """
    from mmengine import Config

    classes = mm_config.class_folders(root / splits["train"])
    px = int(student["input_px"])
    train = _dataset(root / splits["train"], classes, _train_pipeline(px, recipe["crop_scale"]))
    test = _dataset(root / splits["test"], classes, _test_pipeline(px))
    cfg = mm_config.runtime_cfg("mmpretrain", work_dir, seed, checkpoint)
    cfg["custom_imports"]["imports"].append("kdep_bench.transfer.folders")
    cfg.update(
        model=_classifier(student, checkpoint, len(classes), recipe),
        train_dataloader=mm_config.loader(train, recipe["batch"], train=True),
        train_cfg=dict(
            by_epoch=True, max_epochs=int(recipe["epochs"]), val_interval=mm_config.NEVER
        ),
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
        test_dataloader=mm_config.loader(test, recipe["test_batch"], train=False),
        test_cfg=dict(type="TestLoop"),
        test_evaluator=[
            dict(type="Accuracy", topk=(1,)),
            dict(type="SingleLabelMetric", items=("recall", "support"), average=None),
        ],
        optim_wrapper=mm_config.sgd(recipe, recipe["head_lr_mult"]),
        param_scheduler=[
            dict(
                type="CosineAnnealingLR",
                T_max=int(recipe["epochs"]),
                eta_min_ratio=0.01,
                by_epoch=True,
                convert_to_iter_based=True,
            )
        ],
    )
    return Config(mm_config.without_sync_bn(cfg))


def _read_folders(root: Path, splits: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Checks the class folders, and decodes every image once.

    The image decoder of the toolkits fills a truncated JPEG with grey instead of raising an error.

    Returns:
        the class names, and the number of images by split.

    Raises:
        KdepError: splits with different classes, or an image that cannot be decoded.
    """
    classes = mm_config.class_folders(root / splits[0])
    counts = {s: sum(check_image_folder(root / s, classes).values()) for s in splits}
    return classes, counts


class FineTune(MMTask):
    """Fine-tuning of all weights on the training split; the last epoch is scored.

    No epoch is selected: selection by test accuracy, as in KDEP's public code, would bias the score
    upwards.
    """

    scope: ClassVar[str] = "mmpretrain"
    measures = frozenset({"top1"})
    families = frozenset({"classification"})
    recipe_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "folder",
            "epochs",
            "batch",
            "test_batch",
            "lr",
            "head_lr_mult",
            "momentum",
            "weight_decay",
            "clip_norm",
            "crop_scale",
            "frozen_stages",
            "norm_eval",
        }
    )

    def build_cfg(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        work_dir: Path,
    ) -> Any:
        root = Path(data_root) / self.recipe["folder"]
        splits = {"train": "train", "test": self.split}
        return _cfg(root, splits, student, checkpoint, seed, work_dir, self.recipe)

    def check_data(self, data_root: Path) -> list[SplitCount]:
        root = Path(data_root) / self.recipe["folder"]
        images = _read_folders(root, ("train", self.split))[1]
        return [
            SplitCount("train", "train", images["train"], root / "train"),
            SplitCount("test", self.split, images[self.split], root / self.split),
        ]

    def read_metrics(
        self, raw: Mapping[str, Any], cfg: Any, count: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        classes = cfg.test_dataloader.dataset.metainfo.classes
        recall = raw["single-label/recall_classwise"]
        images = raw["single-label/support_classwise"]
        # The recall of a class without images is undefined; mmpretrain returns 0.
        per_class = {
            c: float(r) / 100 if n > 0 else float("nan")
            for c, r, n in zip(classes, recall, images, strict=True)
        }
        # Accuracy of always predicting the most frequent class; it replaces `chance`.
        metrics = {"constant_top1": float(max(images)) / float(sum(images))}
        return {"top1": float(raw["accuracy/top1"]) / 100, **metrics}, per_class, []


class LinearProbe(Task):
    """Multinomial logistic regression on the frozen backbone's pooled features.

    The feature is the last map of the backbone in eval mode, after its last activation, averaged
    over positions. Features are standardised with mean and standard deviation of the training set.

    With the recipe's `protocol` 'split', the regularisation C is chosen on `val`, and the task's
    split is scored; the seed selects a stratified fraction `train_share` of the training images.
    With 'folds', one folder of class folders is divided into `folds` stratified folds by the seed.
    Each fold is predicted by a classifier that is fitted to the other folds, with C chosen by
    cross-validation within them (`inner_folds`). The predictions for all images are scored
    together.
    """

    scope: ClassVar[str] = "mmpretrain"
    measures = frozenset({"top1", "mean_class_recall"})
    families = frozenset({"classification"})
    recipe_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "folder",
            "protocol",
            "batch",
            "c_grid",
            "max_iter",
            "train_share",
            "folds",
            "inner_folds",
        }
    )

    def build_cfg(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        work_dir: Path,
    ) -> Any:
        """The config of a classifier with a frozen backbone; `run` uses only its features.

        mmpretrain's own tools would train the linear head by SGD; `run` fits it exactly.
        """
        splits = {"train": "train", "test": self.split}
        if self.recipe["protocol"] == "folds":
            splits = {"train": ".", "test": "."}
        frozen = len((student.get("pyramid") or {}).get("out_indices", ()))
        recipe = dict(
            epochs=10,
            batch=self.recipe["batch"],
            test_batch=self.recipe["batch"],
            lr=0.1,
            head_lr_mult=1,
            momentum=0.9,
            weight_decay=0.0,
            clip_norm=None,
            crop_scale=(0.5, 1.0),
            frozen_stages=frozen,
            norm_eval=True,
        )
        root = Path(data_root) / self.recipe["folder"]
        return _cfg(root, splits, student, checkpoint, seed, work_dir, recipe)

    def run(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        out: Path,
        progress: ProgressFn,
    ) -> dict[str, Any]:
        from kdep_bench.openmmlab import setup

        setup(self.scope)
        root = Path(data_root) / self.recipe["folder"]
        uses_folds = self.recipe["protocol"] == "folds"
        splits = (".",) if uses_folds else SPLITS
        classes, counted = _read_folders(root, splits)
        cfg = self.build_cfg(data_root, student, checkpoint, seed, out / "mm")
        start = time.perf_counter()
        model, gate = _frozen_model(cfg, checkpoint)
        sets = self._sets(model, cfg, root, counted, progress)
        images = sum(len(y) for _, y in sets.values())
        features_s = time.perf_counter() - start
        progress(len(splits), len(splits) + 1, "fitting")
        start = time.perf_counter()
        fitted = None
        if uses_folds:
            truth, prediction, probability, curve, notes = self._fit_folds(sets["."], seed)
        else:
            fitted, curve, notes = self._fit_split(sets, seed)
            x, truth = sets[self.split]
            prediction, probability = fitted.predict(x), fitted.predict_proba(x)
        fit_s = time.perf_counter() - start
        model_output = self._save_model(model, fitted, len(classes), out)
        recall = {c: float((prediction[truth == i] == i).mean()) for i, c in enumerate(classes)}
        top1 = float((prediction == truth).mean())
        progress(1, 1, f"top1 {top1:.4f}")
        class_fractions = np.bincount(truth, minlength=len(classes)) / len(truth)
        metrics = {"top1": top1, "mean_class_recall": float(np.mean(list(recall.values())))}
        names = samples.image_names(
            _folder_set(cfg, root / ("." if uses_folds else self.split)), data_root
        )
        arrays = samples.classification(truth, prediction, probability)
        saved, sample_notes = samples.save_samples(
            out, Samples("probe", tuple(classes), names, arrays), metrics
        )
        outputs = self.outputs(
            metrics=metrics,
            per_class=recall,
            gate=gate,
            curves={"val": curve},
            train_s=features_s + fit_s,
            eval_s=0.0,
            images_per_s=images / max(features_s, 1e-9),
            notes=[*notes, *sample_notes],
            samples=saved,
            # The accuracy of always predicting the most frequent class.
            chance=float(class_fractions.max()),
        )
        return {**outputs, **model_output}

    def score_with(
        self,
        backbone: Any,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        work_dir: Path,
    ) -> float:
        """Top-1 accuracy of the probe if another backbone computes all features.

        Args:
            backbone: a module with the student's inputs and outputs, such as one that runs its ONNX
                file.
            data_root, student, checkpoint, seed: as in `run`.
            work_dir: for the mmengine Config; nothing is written to it.

        Raises:
            KdepError: the protocol is not 'split', or the data has a fault.
        """
        from kdep_bench.openmmlab import setup

        setup(self.scope)
        if self.recipe["protocol"] != "split":
            raise KdepError(
                f"the task {self.name} has the protocol {self.recipe['protocol']!r}",
                expected="'split'",
                fix="use another linear probe",
            )
        root = Path(data_root) / self.recipe["folder"]
        counted = _read_folders(root, SPLITS)[1]
        cfg = self.build_cfg(data_root, student, checkpoint, seed, work_dir)
        model, _ = _frozen_model(cfg, checkpoint)
        model.backbone = backbone
        sets = self._sets(model, cfg, root, counted, lambda *_: None)
        return float(self._fit_split(sets, seed)[0].score(*sets[self.split]))

    def _sets(
        self, model: Any, cfg: Any, root: Path, counted: Mapping[str, int], progress: ProgressFn
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Features and labels of every split in `counted`; see `_features`."""
        sets = {}
        with mm_config.reading_images(f"task {self.name}"):
            for i, split in enumerate(counted):
                progress(i, len(counted) + 1, f"features of {split}")
                sets[split] = _features(model, cfg, root / split)
                count = SplitCount("test", split, counted[split], root / split)
                compare(self.name, [count], {"test": len(sets[split][1])})
        return sets

    def _save_model(self, model: Any, fitted: Any, classes: int, out: Path) -> dict[str, Any]:
        """Saves the classifier, with the probe as its head, if `keeps_model` is set.

        Returns {"model_checksum": SHA-256 of the file}, or {} if nothing was saved.
        """
        if fitted is None or not self.keeps_model:
            return {}
        from kdep_bench.transfer.export import save_tensors
        from kdep_bench.transfer.method import MODEL

        weight, bias = linear_layer(fitted, classes)
        head = model.head.fc
        head.weight.data.copy_(head.weight.new_tensor(weight))
        head.bias.data.copy_(head.bias.new_tensor(bias))
        return {"model_checksum": save_tensors(model.state_dict(), out / MODEL)}

    def _fit_split(self, sets: Mapping[str, Any], seed: int) -> tuple[Any, list, list[str]]:
        """Chooses C on val; returns (the fitted pipeline, curve, notes).

        The curve has a point [log10(C), accuracy on val] for each C.
        """
        from sklearn.model_selection import train_test_split

        x, y = sets["train"]
        fraction = float(self.recipe["train_share"])
        check_probe(self.recipe, np.bincount(y).tolist(), f"{self.recipe['folder']}/train")
        if fraction < 1:
            x, _, y, _ = train_test_split(x, y, train_size=fraction, stratify=y, random_state=seed)
        best, curve, model = -1.0, [], None
        c_best = 0.0
        for c in sorted(self.recipe["c_grid"]):
            fitted = self._logistic(c).fit(x, y)
            score = float(fitted.score(*sets["val"]))
            curve.append([float(np.log10(c)), score])
            if score > best:  # for equal scores, the smaller C (stronger regularisation) is chosen
                best, model, c_best = score, fitted, c
        assert model is not None
        notes = [f"C = {c_best:g} chosen on val ({best:.4f}); {len(y)} training images"]
        return model, curve, notes

    def _fit_folds(
        self, images: tuple[Any, Any], seed: int
    ) -> tuple[Any, Any, Any, list, list[str]]:
        """Cross-validation; returns (labels, predictions, probabilities, curve, notes).

        The curve has a point [fold, best accuracy of the inner folds] for each fold.
        """
        from sklearn.model_selection import StratifiedKFold, cross_val_score

        x, y = images
        check_probe(self.recipe, np.bincount(y).tolist(), self.recipe["folder"])
        prediction, curve, chosen = np.full_like(y, -1), [], []
        probability = np.zeros((len(y), int(y.max()) + 1))
        outer = StratifiedKFold(self.recipe["folds"], shuffle=True, random_state=seed)
        for fold, (train, test) in enumerate(outer.split(x, y)):
            inner = StratifiedKFold(self.recipe["inner_folds"], shuffle=True, random_state=seed)
            scores = [
                cross_val_score(self._logistic(c), x[train], y[train], cv=inner).mean()
                for c in sorted(self.recipe["c_grid"])
            ]
            c = sorted(self.recipe["c_grid"])[int(np.argmax(scores))]
            chosen.append(c)
            model = self._logistic(c).fit(x[train], y[train])
            prediction[test] = model.predict(x[test])
            probability[test] = model.predict_proba(x[test])
            curve.append([float(fold), float(max(scores))])
        notes = [f"C by inner folds: {', '.join(f'{c:g}' for c in chosen)}"]
        return y, prediction, probability, curve, notes

    def _logistic(self, c: float) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(
            StandardScaler(), LogisticRegression(C=c, max_iter=int(self.recipe["max_iter"]))
        )


def linear_layer(fitted: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The linear layer (weight [classes, C], bias [classes]) that is equal to a fitted pipeline.

    Its softmax gives the probabilities of the pipeline, softmax(W (x - m) / s + b).

    Args:
        fitted: pipeline of StandardScaler (mean m, scale s) and LogisticRegression (W, b). For two
            classes, LogisticRegression has one row w, with sigmoid(w x) = softmax((0, w x)).
        classes: number of classes.
    """
    scaler, logistic = fitted[0], fitted[-1]
    weight, bias = logistic.coef_, logistic.intercept_
    if classes == 2:
        weight, bias = np.vstack([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def _frozen_model(cfg: Any, checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """Builds the ImageClassifier in eval mode; returns it and the check of its loaded weights."""
    from mmengine.logging import MMLogger
    from mmpretrain.registry import MODELS

    from kdep_bench.transfer.gate import check, read_tensors

    MMLogger.get_current_instance().setLevel("ERROR")  # else it prints every initialised tensor
    tensors = read_tensors(checkpoint)
    model = MODELS.build(cfg.model)
    model.init_weights()
    gate = check(model.backbone, checkpoint, tensors=tensors)
    mm_config.prefer_channels_last(model)
    return model.to(compute_device()).eval(), gate


def _folder_set(cfg: Any, folder: Path) -> Any:
    """The data set of the images whose features `_features` returns, in the same order."""
    import copy

    from mmpretrain.registry import DATASETS

    import kdep_bench.transfer.folders  # noqa: F401, registers KdepFolders

    dataset = copy.deepcopy(cfg.test_dataloader.dataset)
    dataset.data_root = str(folder)
    return DATASETS.build(dataset)


def _features(model: Any, cfg: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features [N, width], float64, and labels [N] of all images in `folder`."""
    import copy

    import torch
    from mmengine.runner import Runner

    import kdep_bench.transfer.folders  # noqa: F401, registers KdepFolders

    loader_cfg = copy.deepcopy(cfg.test_dataloader)
    loader_cfg.dataset.data_root = str(folder)
    features, labels = [], []
    with torch.inference_mode():
        for batch in Runner.build_dataloader(loader_cfg, seed=0):
            data = model.data_preprocessor(batch, training=False)
            pooled = model.extract_feat(data["inputs"], stage="neck")[-1]
            features.append(pooled.flatten(1).double().cpu().numpy())
            labels += [int(s.gt_label) for s in data["data_samples"]]
    x = np.concatenate(features)
    if not np.isfinite(x).all():
        raise KdepError(
            f"the backbone's features of {folder} contain NaN or infinity",
            fix="check the loss curve of the pre-training",
        )
    return x, np.asarray(labels)
