# What a run says when ADE20K is not there.
data_hint = (
    'Download http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and unpack it in data/ade '
    '(configs/ade20k/README.md)'
)
