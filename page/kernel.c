// One tile's descent, vaeproj.projection.step for the compact VAE, as WebAssembly: the network, the gradient of the energy at
// the image, the move. Grey, 128 x 128, fp32, BatchNorm folded (vaeproj.model.frozen). engine.js fills in weights and images.
//
// Activations lie in pyramids of five levels, each bordered by a zero pixel, so that no convolution asks where the border is.
// A convolution (kernel 4, stride 2, padding 1) leads one level down, the transposed one up; each is the other's adjoint. So
// the gradient walks the same two ways as the network: down through the decoder, up through the encoder.

#define SHARED __attribute__((visibility("default")))

enum { LEVELS = 5, SIDE = 128, SIZE = SIDE * SIDE, FEATURES = 4096, HIDDEN = 256, LATENT = 64 };
static const int side[LEVELS] = {128, 64, 32, 16, 8}, channels[LEVELS] = {1, 16, 32, 64, 64};
static const int begin[LEVELS + 1] = {0, 16900, 86596, 123588, 144324, 150724}; // sums of (side + 2)^2 channels
typedef float Pyramid[150724];

enum { CONVOLUTION = 256 + 8192 + 32768 + 65536 };                // weights from level to level, fine to coarse
typedef struct { float down[CONVOLUTION], up[CONVOLUTION]; } Way; // the same ones, packed for either direction
typedef struct {                                                  // engine.js writes them in this order
  Way encoder, decoder;
  float encode[HIDDEN * FEATURES], mean[LATENT * HIDDEN], decode[HIDDEN * LATENT], spread[FEATURES * HIDDEN];
  float encoder_bias[176], encode_bias[HIDDEN], mean_bias[LATENT], decode_bias[HIDDEN], spread_bias[FEATURES];
  float decoder_bias[113];
} Weights;

enum { ANCHORED, PAPER, PLAIN, ARTICLE, COMPOSITE };
typedef struct { int descent, full; float lam, tolerance, hardness, coarse; } Settings;
static Settings set;
static const float SLOPE = 0.2f, GROW = 1.2f, SHRINK = 0.4f;

SHARED const char source[] = SOURCE_SHA256; // of this file, by `make kernel`: a test compares
SHARED Weights weights;
SHARED float expected[7];                                    // coefficients of vaeproj.weight.fit_expected
SHARED float x_0[SIZE], x[SIZE], f[SIZE], weight[SIZE], gradient[SIZE], alpha; // vaeproj.projection.State
SHARED double terms[2];

static Pyramid encoder, decoder, cotangent; // the last: of the energy with respect to activations
static float features[FEATURES], hidden[2][HIDDEN], latent[LATENT], cut[HIDDEN];
static const float none[64]; // biases
static float moved[SIZE], painted[SIZE], residual[SIZE], smoothed[SIZE], pulled[SIZE];
static float wide[SIZE], wide_adjoint[SIZE], narrow[SIZE]; // matrices of the Gaussians
enum { WIDE = 16, NARROW = 8 };                             // their reach, four standard deviations of 4 and 2 pixels

// ---- Arithmetic: four floats at once, and the functions a libc would have, without branches so that they vectorize.

typedef float v4 __attribute__((vector_size(16), aligned(4)));
static inline v4 load(const float *p) { return *(const v4 *)p; }
static inline void store(float *p, v4 a) { *(v4 *)p = a; }
static inline v4 all(float a) { return (v4){a, a, a, a}; }
static inline float sum_of(v4 a) { return (a[0] + a[1]) + (a[2] + a[3]); }
static inline float least(float a, float b) { return a < b ? a : b; }
static inline float most(float a, float b) { return a > b ? a : b; }
static inline float square(float a) { return a * a; }

static inline float exponential(float a) {
  a = most(least(a, 88), -87);
  float n = __builtin_rintf(a * 1.44269504f), r = a - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts
  float p = 1 + r * (1 + r * (.5f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
  union { int bits; float power; } two = {((int)n + 127) << 23};
  return p * two.power;
}

static inline float logarithm(float a) { // of a normal number above 0
  union { float value; int bits; } m = {a};
  int n = (m.bits - 0x3f3504f3) >> 23; // leaves a mantissa between the roots of 1/2 and 2
  m.bits -= n << 23;
  float s = (m.value - 1) / (m.value + 1), q = s * s;
  return n * 0.693147181f + 2 * s * (1 + q * (1 / 3.f + q * (1 / 5.f + q * (1 / 7.f + q * (1 / 9.f)))));
}

static inline float sigmoid(float a) { return 1 / (1 + exponential(-a)); }

// ---- The network.

typedef struct { int row, pixel; } Pitch; // floats from one row of pixels to the next, from one pixel to the next

// A square of pixels, each `lines` runs of neighbouring floats, `line` apart, times a matrix packed [N / 8][lines run][8]: four
// pixels by eight channels stay in registers.
static void multiply(const float *in, Pitch from, int line, int lines, int run, const float *w, const float *bias,
                     float *out, Pitch to, int side, int N) {
  for (int n = 0; n < N; n += 8, w += lines * run * 8)
    for (int i = 0; i < side; i++)
      for (int j = 0; j < side; j += 4) {
        v4 s[4][2];
        for (int m = 0; m < 4; m++) s[m][0] = load(bias + n), s[m][1] = load(bias + n + 4);
        const float *now = w;
        for (int l = 0; l < lines; l++) {
          const float *a = in + i * from.row + j * from.pixel + l * line;
          for (int k = 0; k < run; k++, now += 8) {
            v4 w0 = load(now), w1 = load(now + 4);
            for (int m = 0; m < 4; m++) s[m][0] += all(a[m * from.pixel + k]) * w0, s[m][1] += all(a[m * from.pixel + k]) * w1;
          }
        }
        float *at = out + i * to.row + j * to.pixel + n;
        for (int m = 0; m < 4; m++) store(at + m * to.pixel, s[m][0]), store(at + m * to.pixel + 4, s[m][1]);
      }
}

// The same for a single channel, where eight at once would be zeros: one pixel, four inputs at once.
static void multiply_single(const float *in, Pitch from, int line, int lines, int run, const float *w, float bias,
                            float *out, Pitch to, int side) {
  for (int i = 0; i < side; i++)
    for (int j = 0; j < side; j++) {
      const float *a = in + i * from.row + j * from.pixel;
      v4 s = all(0);
      for (int l = 0; l < lines; l++)
        for (int k = 0; k < run; k += 4) s += load(a + l * line + k) * load(w + l * run + k);
      out[i * to.row + j * to.pixel] = bias + sum_of(s);
    }
}

// LeakyReLU where a is its own gate. Its adjoint where a is a gradient: the gate, what LeakyReLU gave, has its input's sign.
static void leaky(float *a, const float *gate, int n) {
#pragma clang loop vectorize(assume_safety)
  for (int i = 0; i < n; i++) a[i] *= gate[i] > 0 ? 1 : SLOPE;
}

static void leaky_level(float *p, int l, const float *gates) { leaky(p + begin[l], gates + begin[l], begin[l + 1] - begin[l]); }

// All levels from the finest down. A gradient has no biases, and the activations of the way there as its gates.
static void go_down(float *p, const float *w, const float *bias, const float *gates) {
  for (int l = 0; l < LEVELS - 1; l++) {
    int C = channels[l], N = channels[l + 1], row = (side[l] + 2) * C, below = (side[l + 1] + 2) * N;
    multiply(p + begin[l], (Pitch){2 * row, 2 * C}, row, 4, 4 * C, w, gates ? none : bias,
             p + begin[l + 1] + below + N, (Pitch){below, N}, side[l + 1], N);
    leaky_level(p, l + 1, gates ? gates : p);
    w += 16 * C * N, bias += N;
  }
}

// All levels from the coarsest up. A transposed convolution is four of 2 x 2, one for each phase: even or odd row, column.
static void go_up(float *p, const float *w, const float *bias, const float *gates) {
  w += CONVOLUTION;
  for (int l = LEVELS - 2; l >= 0; l--) {
    int C = channels[l], N = channels[l + 1], row = (side[l] + 2) * C, below = (side[l + 1] + 2) * N;
    w -= 16 * C * N;
    for (int phase = 0; phase < 4; phase++) {
      int a = phase >> 1, b = phase & 1;
      const float *in = p + begin[l + 1] + a * below + b * N, *now = w + phase * 4 * N * C;
      float *out = p + begin[l] + (1 + a) * row + (1 + b) * C;
      Pitch from = {below, N}, to = {2 * row, 2 * C};
      if (C == 1) multiply_single(in, from, below, 2, 2 * N, now, gates ? 0 : *bias, out, to, side[l + 1]);
      else multiply(in, from, below, 2, 2 * N, now, gates ? none : bias, out, to, side[l + 1], C);
    }
    if (l) leaky_level(p, l, gates ? gates : p); // the finest are logits, or the gradient itself
    bias += C;
  }
}

static void dense(const float *w, const float *bias, const float *in, int K, float *out, int N) { // out = w in + bias
  for (int n = 0; n < N; n += 4, w += 4 * K) {
    v4 s0 = all(0), s1 = s0, s2 = s0, s3 = s0;
    for (int k = 0; k < K; k += 4) {
      v4 a = load(in + k);
      s0 += a * load(w + k), s1 += a * load(w + K + k), s2 += a * load(w + 2 * K + k), s3 += a * load(w + 3 * K + k);
    }
    store(out + n, load(bias + n) + (v4){sum_of(s0), sum_of(s1), sum_of(s2), sum_of(s3)});
  }
}

static void dense_adjoint(const float *w, const float *in, int N, float *out, int K) { // out = in w
  for (int k = 0; k < K; k++) out[k] = 0;
  for (int n = 0; n < N; n += 4, w += 4 * K) {
    v4 a = all(in[n]), b = all(in[n + 1]), c = all(in[n + 2]), d = all(in[n + 3]);
    for (int k = 0; k < K; k += 4) {
      v4 ab = a * load(w + k) + b * load(w + K + k), cd = c * load(w + 2 * K + k) + d * load(w + 3 * K + k);
      store(out + k, load(out + k) + (ab + cd));
    }
  }
}

static float *line(float *p, int l, int i) { return p + begin[l] + ((i + 1) * (side[l] + 2) + 1) * channels[l]; }

// Between a level and an array without its border.
static void enter(float *p, int l, const float *flat) {
  for (int i = 0, n = side[l] * channels[l]; i < side[l]; i++) __builtin_memcpy(line(p, l, i), flat + i * n, 4 * n);
}
static void leave(float *p, int l, float *flat) {
  for (int i = 0, n = side[l] * channels[l]; i < side[l]; i++) __builtin_memcpy(flat + i * n, line(p, l, i), 4 * n);
}

static void forward(const float *image, float *logits) {
  enter(encoder, 0, image);
  go_down(encoder, weights.encoder.down, weights.encoder_bias, 0);
  leave(encoder, 4, features);
  dense(weights.encode, weights.encode_bias, features, FEATURES, hidden[0], HIDDEN), leaky(hidden[0], hidden[0], HIDDEN);
  dense(weights.mean, weights.mean_bias, hidden[0], HIDDEN, latent, LATENT);
  dense(weights.decode, weights.decode_bias, latent, LATENT, hidden[1], HIDDEN), leaky(hidden[1], hidden[1], HIDDEN);
  dense(weights.spread, weights.spread_bias, hidden[1], HIDDEN, features, FEATURES), leaky(features, features, FEATURES);
  enter(decoder, 4, features);
  go_up(decoder, weights.decoder.up, weights.decoder_bias, 0);
  leave(decoder, 0, logits);
}

// From the energy's gradient with respect to the logits to that with respect to the image.
static void backward(const float *logits, float *image) {
  enter(cotangent, 0, logits);
  go_down(cotangent, weights.decoder.down, none, decoder);
  leave(cotangent, 4, features);
  dense_adjoint(weights.spread, features, FEATURES, cut, HIDDEN), leaky(cut, hidden[1], HIDDEN);
  dense_adjoint(weights.decode, cut, HIDDEN, latent, LATENT);
  dense_adjoint(weights.mean, latent, LATENT, cut, HIDDEN), leaky(cut, hidden[0], HIDDEN);
  dense_adjoint(weights.encode, cut, HIDDEN, features, FEATURES);
  enter(cotangent, 4, features), leaky_level(cotangent, 4, encoder);
  go_up(cotangent, weights.encoder.up, none, encoder);
  leave(cotangent, 0, image);
}

// ---- Gaussians (vaeproj.blur) and the weight of each pixel (vaeproj.weight).

static float bell(int distance, float sigma, int reach) {
  return distance <= reach && -distance <= reach ? exponential(-0.5f * square(distance / sigma)) : 0;
}

static void band(float *matrix, float *adjoint, float sigma, int reach) { // the border's own pixel is not doubled by its mirror
  for (int i = 0; i < SIDE; i++) {
    float total = 0, *row = matrix + i * SIDE;
    for (int j = 0, last = SIDE - 1; j < SIDE; j++) {
      row[j] = bell(i - j, sigma, reach) + (j ? bell(i + j, sigma, reach) : 0);
      total += row[j] += j < last ? bell(2 * last - i - j, sigma, reach) : 0;
    }
    for (int j = 0; j < SIDE; j++) row[j] /= total;
    for (int j = 0; adjoint && j < SIDE; j++) adjoint[j * SIDE + i] = row[j];
  }
}

// matrix times image, transposed: twice gives matrix image matrix^T. No weight lies farther from the diagonal than the reach.
static void blur_columns(const float *in, const float *matrix, int reach, float *out) {
  for (int i = 0; i < SIDE; i++) {
    int first = i > reach ? i - reach : 0, end = i + reach < SIDE ? i + reach + 1 : SIDE;
    for (int c = 0; c < SIDE; c += 16) {
      v4 s[4] = {all(0), all(0), all(0), all(0)};
      for (int j = first; j < end; j++)
        for (int k = 0; k < 4; k++) s[k] += all(matrix[i * SIDE + j]) * load(in + j * SIDE + c + 4 * k);
      for (int k = 0; k < 16; k++) out[(c + k) * SIDE + i] = s[k / 4][k % 4];
    }
  }
}

static void blur(const float *in, const float *matrix, int reach, float *out) {
  static float turned[SIZE];
  blur_columns(in, matrix, reach, turned);
  blur_columns(turned, matrix, reach, out);
}

static void weigh(const float *picture) { // anomaly_weight(x_0, picture)
  static float q[SIZE], level[SIZE], edges[SIZE], detail[SIZE], raw[SIZE];
  for (int i = 0; i < SIZE; i++) raw[i] = square(x_0[i] - picture[i]);
  blur(raw, wide, WIDE, q);
  for (int i = 0; i < SIDE; i++)
    for (int j = 0; j < SIDE; j++) { // torch.gradient: one-sided at the border
      int above = i ? i - 1 : 0, under = i < SIDE - 1 ? i + 1 : i, left = j ? j - 1 : 0, right = j < SIDE - 1 ? j + 1 : j;
      float dy = (picture[under * SIDE + j] - picture[above * SIDE + j]) / (under - above);
      float dx = (picture[i * SIDE + right] - picture[i * SIDE + left]) / (right - left);
      raw[i * SIDE + j] = dy * dy + dx * dx;
    }
  blur(raw, wide, WIDE, edges);
  blur(picture, wide, WIDE, level);
  blur(picture, narrow, NARROW, detail);
  for (int i = 0; i < SIZE; i++) raw[i] = square(picture[i] - detail[i]);
  blur(raw, wide, WIDE, detail);
  for (int i = 0; i < SIZE; i++) {
    float e = expected[0] + expected[1] * edges[i] + expected[2] * __builtin_sqrtf(edges[i]) + expected[3] * level[i]
            + expected[4] * square(level[i]) + expected[5] * detail[i];
    float excess = q[i] / (square(set.tolerance) * most(e, expected[6]));
    weight[i] = sigmoid(set.hardness * logarithm(most(excess, 1e-12f)));
  }
}

// ---- The energy, its gradient, the step (vaeproj.projection).

static int anchored(void) { return set.descent == ANCHORED || set.descent == COMPOSITE; }

// The energy's two terms, with `weight` as it is. Leaves image - picture in `residual`, and that smoothed in `smoothed`.
static void energy(const float *image, const float *picture, const float *logits, double *two) {
  for (int i = 0; i < SIZE; i++) residual[i] = image[i] - picture[i];
  if (set.coarse) blur(residual, wide, WIDE, smoothed);
  two[0] = two[1] = 0;
  for (int i = 0; i < SIZE; i++) {
    float moved_by = image[i] - x_0[i], l = logits[i];
    if (set.descent == ARTICLE) // cross-entropy from the logits
      two[0] += most(l, 0) - l * image[i] + logarithm(1 + exponential(-most(l, -l)));
    else
      two[0] += weight[i] * (square(residual[i]) + set.coarse * square(smoothed[i]));
    two[1] += anchored() ? (1 - weight[i]) * square(moved_by) : set.lam * most(moved_by, -moved_by);
  }
}

// The rest of energy_gradient at the image `moved` that the network has just seen: it becomes the state.
static void arrive(const float *logits) {
  for (int i = 0; i < SIZE; i++) x[i] = moved[i], f[i] = painted[i], weight[i] = 1;
  if (anchored()) weigh(f);
  energy(x, f, logits, terms);
  for (int i = 0; i < SIZE; i++) pulled[i] = weight[i] * smoothed[i];
  if (set.coarse) blur(pulled, wide_adjoint, WIDE, pulled);
  for (int i = 0; i < SIZE; i++) {
    float moved_by = x[i] - x_0[i];
    float distance = anchored() ? 2 * (1 - weight[i]) * moved_by : set.lam * ((moved_by > 0) - (moved_by < 0));
    float pull = 2 * (weight[i] * residual[i] + set.coarse * pulled[i]);
    gradient[i] = distance + (set.descent == ARTICLE ? -logits[i] : pull);
    pulled[i] = set.descent == ARTICLE ? -residual[i] : -pull * f[i] * (1 - f[i]); // with respect to the logits
  }
  if (!set.full || set.descent == COMPOSITE) return;
  backward(pulled, pulled);
  for (int i = 0; i < SIZE; i++) gradient[i] += pulled[i];
}

static const float *look(void) { // at `moved`: paints f(moved)
  static float logits[SIZE];
  forward(moved, logits);
  for (int i = 0; i < SIZE; i++) painted[i] = sigmoid(logits[i]);
  return logits;
}

SHARED void prepare(void) { band(wide, wide_adjoint, 4, WIDE), band(narrow, 0, 2, NARROW); }

// From x, with x_0, alpha and expected in place.
SHARED void start(int descent, int full, float lam, float tolerance, float hardness, float coarse) {
  set = (Settings){descent, full, lam, tolerance, hardness, coarse};
  for (int i = 0; i < SIZE; i++) moved[i] = x[i];
  arrive(look());
}

// One iteration. 0: it raised the energy and was taken back; the next one is shorter.
SHARED int step(void) {
  int masked = set.descent == PAPER || set.descent == ARTICLE;
  for (int i = 0; i < SIZE; i++) {
    float by = alpha * gradient[i] * (masked ? square(x[i] - f[i]) : 1);
    moved[i] = set.descent == COMPOSITE ? x_0[i] - weight[i] * (x_0[i] - f[i]) : most(least(x[i] - by, 1), 0);
  }
  const float *logits = look();
  if (set.descent == ANCHORED) {
    double with_same_weight[2];
    energy(moved, painted, logits, with_same_weight);
    if (!(with_same_weight[0] + with_same_weight[1] <= terms[0] + terms[1])) return alpha *= SHRINK, 0;
    alpha *= GROW;
  }
  arrive(logits);
  return 1;
}
