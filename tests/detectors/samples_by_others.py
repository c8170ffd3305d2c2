"""Small data sets as Label Studio, Labelme, labelImg, VIA and Kaggle's competitions have them; see samples.py."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.detectors.samples import ALL, BOX, HEIGHT, NAMES, POLYGON, coco, lines, photos, put, sample, voc, yolo


# -------------------------------------------------------------------------------------------------- Label Studio
@sample("Label Studio: COCO", "--train-json", "result.json", masks=True)
def label_studio_coco(root: Path) -> None:
    photos(root / "images", pattern="1f2e3d4c-{:03}.jpg")
    put(root / "result.json", coco(pattern="images\\1f2e3d4c-{:03}.jpg"))


UPLOADS = ("--train-json", "result.json", "--train-images", "photos")


@sample("Label Studio: COCO, images by the paths of uploads", *UPLOADS, masks=True)
def label_studio_uploads(root: Path) -> None:
    photos(root / "photos")
    put(root / "result.json", coco(pattern="/data/upload/3/1f2e3d4c-{:03}.jpg"))


@sample("Label Studio: YOLO")
def label_studio_yolo(root: Path) -> None:
    yolo(root, images="images", labels="labels")
    put(root / "classes.txt", "cat\nhot dog\n")
    put(root / "notes.json", '{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "hot dog"}], "info": {}}')


@sample("Label Studio: Pascal VOC")
def label_studio_voc(root: Path) -> None:
    photos(root / "images", pattern="1f2e3d4c-{:03}.jpg")
    for number in ALL:
        put(root / "Annotations" / f"1f2e3d4c-{number:03}.xml", voc(number, f"1f2e3d4c-{number:03}"))


# ------------------------------------------------------------------------------------------------------- Labelme
@sample("Labelme: JSON beside the images", masks=True)
def labelme(root: Path) -> None:
    photos(root)
    mask = io.BytesIO()
    Image.fromarray(np.ones((20, 16), bool)).save(mask, "PNG")
    for number in ALL:
        corners: Any = np.reshape(POLYGON, (4, 2)).tolist()
        shape = {"label": NAMES[number % 2], "points": corners, "group_id": None, "shape_type": "polygon", "flags": {}}
        if number % 3 == 1:
            shape |= {"points": [[24, 28], [8, 8]], "shape_type": "rectangle"}
        elif number % 5 == 2:
            data = base64.b64encode(mask.getvalue()).decode()
            shape |= {"points": [[8, 8], [23, 27]], "shape_type": "mask", "mask": data}
        content = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": f"..\\photos\\{number:03}.jpg"}
        put(root / f"{number:03}.json", content | {"imageData": None, "imageHeight": 48, "imageWidth": 64})


@sample("Labelme: labelme2coco", masks=True)
def labelme_coco(root: Path) -> None:
    photos(root / "JPEGImages")
    content = coco(pattern="JPEGImages\\{:03}.jpg")
    content["categories"].insert(0, {"id": 0, "name": "_background_", "supercategory": None})
    put(root / "annotations.json", content)


# ------------------------------------------------------------------------------------------------------ labelImg
@sample("labelImg: Pascal VOC beside the images, in nested folders")
def labelimg_voc(root: Path) -> None:
    for number in ALL:
        folder = root / ("first day" if number < 6 else "second day")
        photos(folder, [number])
        put(folder / f"{number:03}.xml", voc(number, folder=folder.name))


@sample("labelImg: Pascal VOC in a folder of its own")
def labelimg_folders(root: Path) -> None:
    photos(root / "images")
    for number in ALL:
        put(root / "annotations" / f"{number:03}.xml", voc(number))


@sample("labelImg: YOLO beside the images")
def labelimg_yolo(root: Path) -> None:
    yolo(root, images=".", labels=".")
    put(root / "classes.txt", "cat\nhot dog\n")


# ----------------------------------------------------------------------------------------------------------- VIA
def via_regions(number: int) -> list[dict[str, Any]]:
    x, y, w, h = BOX
    shape: dict[str, Any] = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
    if number % 2:
        shape = {"name": "polygon", "all_points_x": POLYGON[::2], "all_points_y": POLYGON[1::2]}
    return [{"shape_attributes": shape, "region_attributes": {"class": NAMES[number % 2]}}]


@sample("VIA: project", "--train-json", "via_project_1Jan2024.json", "--train-images", "images", masks=True)
def via_project(root: Path) -> None:
    photos(root / "images")
    files = {
        f"{n:03}.jpg{n}": {"filename": f"{n:03}.jpg", "size": n, "regions": via_regions(n), "file_attributes": {}}
        for n in ALL
    }
    attributes = {"region": {"class": {"type": "dropdown", "options": {}}}, "file": {}}
    content = {"_via_settings": {}, "_via_img_metadata": files, "_via_attributes": attributes}
    put(root / "via_project_1Jan2024.json", content)


@sample("VIA: annotations as JSON of VIA 1", masks=True)
def via_json(root: Path) -> None:
    photos(root)
    about = {"fileref": "", "base64_img_data": "", "file_attributes": {}}
    files = {
        f"{n:03}.jpg{n}": {**about, "size": n, "filename": f"{n:03}.jpg", "regions": {"0": via_regions(n)[0]}}
        for n in ALL
    }
    put(root / "via_region_data.json", files)


@sample("VIA: annotations as CSV", masks=True)
def via_csv(root: Path) -> None:
    photos(root)
    rows = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    for number in ALL:
        shape, kind = (json.dumps(part).replace('"', '""') for part in via_regions(number)[0].values())
        rows += f'{number:03}.jpg,{number},"{{}}",1,0,"{shape}","{kind}"\n'
    put(root / "via_export_csv.csv", rows)


@sample("VIA: annotations as COCO", "--train-json", "via_export_coco.json", masks=True)
def via_coco(root: Path) -> None:
    photos(root)
    content = coco(segmentation=POLYGON)  # one list of numbers, not a list of polygons
    for row in content["annotations"]:
        row["image_id"] = str(row["image_id"])
    put(root / "via_export_coco.json", content)


# -------------------------------------------------------------------------------------------------------- Kaggle
@sample("Kaggle: CSV of corners", "--train-folder", "train.csv", "--train-images", "images")
def kaggle_corners(root: Path) -> None:
    photos(root / "images")
    put(root / "train.csv", "image,xmin,ymin,xmax,ymax,label\n" + lines("{:03}.jpg,8,8,24,28,{}"))


@sample("Kaggle: CSV with a column bbox", "--train-folder", "train.csv", "--train-images", "train")
def kaggle_boxes(root: Path) -> None:
    photos(root / "train")
    rows = lines('{:03},64,48,"[8.0, 8.0, 16.0, 20.0]",usask_1,{}')
    put(root / "train.csv", f"image_id,width,height,bbox,source,label\n{rows}")


@sample("Kaggle: CSV of run lengths", "--train-folder", "train.csv", "--train-images", "train_images", masks=True)
def kaggle_runs(root: Path) -> None:
    photos(root / "train_images")
    pairs = " ".join(f"{HEIGHT * x + 8 + 1} 20" for x in range(8, 24))  # from 1, by columns
    put(root / "train.csv", "ImageId,EncodedPixels,ClassId\n" + lines(f"{{:03}}.jpg,{pairs},{{}}"))
