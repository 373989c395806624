"""Critics: what scores a crop and an answer for pairs and rewards, and what their scores are calibrated by."""
