"""Pure detection arithmetic over `keras.ops`: arrays in, arrays out; static shapes, float32, a batch dimension.

Letters: B pictures, A anchors, G ground-truth slots (padded), P proposals, S sampled RoIs, D detections, K classes.
Boxes are xyxy pixels, half-open (width = x2 - x1).
"""
