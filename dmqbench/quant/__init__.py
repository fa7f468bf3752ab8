"""The quantization core: what is quantized how, and the layers that do it. Imports torch and the standard library.

To read first, in this order:

- ``spec``: bit-widths, the scope, and which channels and network calls share parameters;
- ``plan``: the bits of every layer of a network;
- ``functional``: rounding to codes and back, as pure functions;
- ``quantizer``: the modules that hold scales and zero-points of weights and of activations;
- ``layers``: layers with both, in training, and how a whole network is switched, frozen and given other bits.

Then ``frozen`` says what a calibrated layer means in integers, and ``engines/`` computes it.
"""
