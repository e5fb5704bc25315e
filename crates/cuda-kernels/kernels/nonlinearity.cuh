#pragma once
// The nonlinearities of the feed-forward part.

// The launcher passes one of these by number.
enum Activation { GELU, GELU_TANH, QUICK_GELU, SILU, RELU, SQUARED_RELU, CLAMPED_QUICK_GELU };

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

DEVICE float activated(float x, int activation) {
    switch (activation) {
        case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case SILU: return x * sigmoid(x);
        case RELU: return fmaxf(x, 0.0f);
        // What it multiplies has a rule of its own, which no kernel has: such layers are refused, and this is never run.
        case CLAMPED_QUICK_GELU: return QUIET_NAN;
        default: {
            float positive = fmaxf(x, 0.0f);
            return positive * positive;
        }
    }
}
