// Group normalisation (Wu and He 2018), with or without SiLU after it, and its gradient, in float32.
//
// Images are (n, pixels, channels) without gaps; channels are a multiple of 8, and lie in groups side by side.

#include "vector.h"

struct sizes {
    long images, pixels, channels, groups, silu;
};

// 1 / (1 + e^-x)
static inline vec sigmoid(vec x) {
    bits small = x < -87.0f;
    vec bounded = (vec)(((bits)x & ~small) | ((bits)(vec){-87, -87, -87, -87, -87, -87, -87, -87} & small));
    return 1 / (1 + exponential(-bounded));
}

// Sums of each group's channels (channels,) -> (groups,)
static void sum_groups(const float *x, const struct sizes *of, float *sums) {
    long each = of->channels / of->groups;
    for (long g = 0; g < of->groups; g++) {
        sums[g] = 0;
        for (long c = g * each; c < (g + 1) * each; c++) sums[g] += x[c];
    }
}

// What an image is multiplied by, and what is added then, for each channel.
static void line_of(const struct sizes *of, const float *weight, const float *bias, const float *means,
                    const float *scales, float *factors, float *offsets) {
    long each = of->channels / of->groups;
    for (long c = 0; c < of->channels; c++) {
        factors[c] = scales[c / each] * weight[c];
        offsets[c] = bias[c] - means[c / each] * factors[c];
    }
}

// What is called from outside. `means` and `scales`, which are 1 / deviation, are (n, groups).

void normalise(const struct sizes *of, const float *x, const float *weight, const float *bias, float *y, float *means,
               float *scales, float *epsilon) {
    long channels = of->channels, groups = of->groups, count = of->pixels * (channels / groups);
    float sums[channels], factors[channels], offsets[channels], spread[groups];
    for (long i = 0; i < of->images; i++, means += groups, scales += groups) {
        const float *image = x + i * of->pixels * channels;
        float *result = y + i * of->pixels * channels;
        memset(sums, 0, sizeof sums);
        for (long p = 0; p < of->pixels; p++)
            for (long c = 0; c < channels; c += VECTOR_WIDTH) AT(sums, c) += AT(image, p * channels + c);
        sum_groups(sums, of, means);
        for (long g = 0; g < groups; g++) means[g] /= count;
        for (long c = 0; c < channels; c++) factors[c] = means[c / (channels / groups)];
        memset(sums, 0, sizeof sums);
        for (long p = 0; p < of->pixels; p++)
            for (long c = 0; c < channels; c += VECTOR_WIDTH) {
                vec centred = AT(image, p * channels + c) - AT(factors, c);
                AT(sums, c) += centred * centred;
            }
        sum_groups(sums, of, spread);
        for (long g = 0; g < groups; g++) scales[g] = 1 / sqrtf(spread[g] / count + *epsilon);
        line_of(of, weight, bias, means, scales, factors, offsets);
        for (long p = 0; p < of->pixels; p++)
            for (long c = 0; c < channels; c += VECTOR_WIDTH) {
                vec z = AT(image, p * channels + c) * AT(factors, c) + AT(offsets, c);
                AT(result, p * channels + c) = of->silu ? z * sigmoid(z) : z;
            }
    }
}

// The gradient by y -> by x; adds to those by weight and bias (channels,).
void normalise_backward(const struct sizes *of, const float *x, const float *weight, const float *bias,
                        const float *means, const float *scales, const float *of_y, float *of_x, float *of_weight,
                        float *of_bias) {
    long channels = of->channels, groups = of->groups, each = channels / groups, count = of->pixels * each;
    float sums[channels], products[channels], factors[channels], offsets[channels];
    float centres[channels], slopes[channels], constants[channels];
    for (long i = 0; i < of->images; i++, means += groups, scales += groups) {
        const float *image = x + i * of->pixels * channels, *gradient = of_y + i * of->pixels * channels;
        float *result = of_x + i * of->pixels * channels;
        line_of(of, weight, bias, means, scales, factors, offsets);
        for (long c = 0; c < channels; c++) centres[c] = means[c / each];
        memset(sums, 0, sizeof sums);
        memset(products, 0, sizeof products);
        for (long p = 0; p < of->pixels; p++)
            for (long c = 0; c < channels; c += VECTOR_WIDTH) {
                vec here = AT(image, p * channels + c), of_z = AT(gradient, p * channels + c);
                if (of->silu) {
                    vec z = here * AT(factors, c) + AT(offsets, c), share = sigmoid(z);
                    of_z *= share * (1 + z * (1 - share));
                }
                AT(result, p * channels + c) = of_z;
                AT(sums, c) += of_z;
                AT(products, c) += of_z * (here - AT(centres, c));
            }
        for (long g = 0; g < groups; g++) {
            float by_sum = 0, by_product = 0;
            for (long c = g * each; c < (g + 1) * each; c++) {
                of_bias[c] += sums[c];
                of_weight[c] += scales[g] * products[c];
                by_sum += weight[c] * sums[c];
                by_product += weight[c] * products[c];
            }
            for (long c = g * each; c < (g + 1) * each; c++) {
                slopes[c] = -by_product * scales[g] * scales[g] * scales[g] / count;
                constants[c] = -by_sum * scales[g] / count;
            }
        }
        for (long p = 0; p < of->pixels; p++)
            for (long c = 0; c < channels; c += VECTOR_WIDTH) {
                vec centred = AT(image, p * channels + c) - AT(centres, c);
                AT(result, p * channels + c) =
                    AT(result, p * channels + c) * AT(factors, c) + centred * AT(slopes, c) + AT(constants, c);
            }
    }
}
