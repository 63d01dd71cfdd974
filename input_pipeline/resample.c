/* Antialiased resizing of RGB images as a TensorFlow operation; resampling.py builds and loads it.
 *
 *   ResnetResize(image: uint8 [H,W,3], box: float [0] or [4], size: int32 [2]; bicubic: bool)
 *     -> uint8 [size[0],size[1],3]
 *
 * box: what is resized, as (top, left, height, width) in pixels, fractions too; of no values, all of the image. No filter
 * looks over its edge, and of a pixel that the edge divides as much counts as lies inside.
 *
 * The filter is the triangle (bilinear) or Keys' cubic with a = -1/2, widened by the factor of a reduction, its weights
 * scaled to the sum of 1 (Pillow's and torchvision's rule). Rows are weighed first, then columns, in float32 and in the
 * order of TensorFlow's ScaleAndTranslate: the bits are those of decode.py's graph (where pixels are divided, to a level
 * where a sum is a tie), of which this takes a tenth of the time. It must be compiled without contracting products and
 * sums (-ffp-contract=off), which would change them.
 *
 * Two output rows after the other two: the weighed input rows lie in lines of floats, which stay in the first cache, and
 * both go through the same weights of columns.
 */
#include <math.h>
#include <stdlib.h>

#include "resample_interface.h"

/* A function is compiled for each of these, and the machine's best is taken when the library is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef FOR_EACH_PROCESSOR
#define FOR_EACH_PROCESSOR
#endif

/* A pixel, and a value of the next one. Pixels begin at any multiple of four bytes. */
typedef float Pixel __attribute__((vector_size(16), aligned(4)));
/* Up to MOST_ALIKE inputs all outputs of a line are made of as many, some with the weight 0: the compiler makes a loop
 * without branches of each number. Lines end with room for what lies beyond, and for the next one's value. */
enum { CHANNELS = 3, MOST_ALIKE = 6, SPARE = CHANNELS * MOST_ALIKE + 1, GROUP = 4, LINES = 2 };

/* Up to here a float is any whole number. Above, a side rounded up would have the last rows read behind the image. */
enum { MOST_EXACT = 1 << 24 };

/* Of each output of an axis: its first input, how many, `largest` at most, and `most` weights, the last ones 0. */
typedef struct {
  int64_t most, largest, *first, *count;
  float *weights;
} Filter;

static float triangle(float x) { return fabsf(x) < 1 ? 1 - fabsf(x) : 0; }

static float keys_cubic(float x) {
  x = fabsf(x);
  if (x >= 2) return 0;
  if (x >= 1) return ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f;
  return ((1.5f * x - 2.5f) * x) * x + 1.0f;
}

static int64_t within(int64_t value, int64_t size) { return value < 0 ? 0 : value < size ? value : size - 1; }

static void free_filter(Filter *filter) {
  free(filter->first);
  free(filter->count);
  free(filter->weights);
}

/* What is resized of an axis: `length` pixels from `start`, within the whole pixels from `first` to before `end`. */
typedef struct {
  float start, length;
  int64_t first, end;
} Part;

static Part part(float start, float length) {
  return (Part){start, length, (int64_t)floorf(start), (int64_t)ceilf(start + length)};
}

/* The filter from the whole pixels of `of` to `new_size` outputs; whether there was memory for it. */
static int make_filter(Filter *filter, Part of, int64_t new_size, int bicubic) {
  const float step = 1.0 / ((float)new_size / of.length), wide = step > 1 ? step : 1, narrow = 1.0f / wide;
  const float radius = bicubic ? 2 : 1, start = of.start - (float)of.first;
  const int64_t size = of.end - of.first;
  const float share_of_first = 1 - start, share_of_last = start + of.length - (float)(size - 1);
  filter->most = 2 * (int64_t)ceilf(radius * wide) + 1;
  filter->first = malloc(new_size * sizeof(int64_t));
  filter->count = malloc(new_size * sizeof(int64_t));
  filter->weights = calloc(new_size * filter->most, sizeof(float));
  if (!filter->first || !filter->count || !filter->weights) return 0;
  for (int64_t output = 0; output < new_size; output++) {
    const float centre = (output + 0.5f) * step + start;
    const int64_t first = within(ceilf(centre - radius * wide - 0.5f), size);
    const int64_t count = within(floorf(centre + radius * wide - 0.5f), size) + 1 - first;
    float *weights = filter->weights + output * filter->most, total = 0;
    for (int64_t i = 0; i < count; i++) {
      const float distance = ((float)(first + i) + 0.5f - centre) * narrow;
      weights[i] = bicubic ? keys_cubic(distance) : triangle(distance);
      if (first + i == 0) weights[i] *= share_of_first;
      if (first + i == size - 1) weights[i] *= share_of_last;
      total += weights[i];
    }
    const float scale = 1.0f / total;
    for (int64_t i = 0; i < count; i++) weights[i] *= scale;
    filter->first[output] = first;
    filter->count[output] = count;
    if (count > filter->largest) filter->largest = count;
  }
  return 1;
}

/* line[j] = (begun ? line[j] : 0) + weights[0] rows[j] + weights[1] rows[stride + j] + ..., of `count` rows. */
static inline __attribute__((always_inline)) void add_rows(const uint8_t *restrict rows, int64_t stride, int64_t length,
                                                           const float *restrict weights, int count, int begun,
                                                           float *restrict line) {
  for (int64_t j = 0; j < length; j++) {
    float sum = begun ? line[j] : 0;
    for (int i = 0; i < count; i++) sum += weights[i] * rows[i * stride + j];
    line[j] = sum;
  }
}

/* The weighed sum of `count` rows. Up to four at a time: the compiler makes a loop without branches of each number. */
FOR_EACH_PROCESSOR
static void weigh_rows(const uint8_t *rows, int64_t stride, int64_t length, const float *weights, int64_t count,
                       float *line) {
  switch (count) {
    case 1: add_rows(rows, stride, length, weights, 1, 0, line); return;
    case 2: add_rows(rows, stride, length, weights, 2, 0, line); return;
    case 3: add_rows(rows, stride, length, weights, 3, 0, line); return;
    default: add_rows(rows, stride, length, weights, GROUP, 0, line);
  }
  int64_t done = GROUP;
  for (; done + GROUP <= count; done += GROUP)
    add_rows(rows + done * stride, stride, length, weights + done, GROUP, 1, line);
  for (; done < count; done++) add_rows(rows + done * stride, stride, length, weights + done, 1, 1, line);
}

/* The pixels of both lines, each the weighed sum of `alike` or, where that is 0, of as many as it has. Lines are `length`
 * and SPARE values apart. */
static inline __attribute__((always_inline)) void add_columns(const float *line, int64_t length, const Filter *filter,
                                                              int64_t new_width, int alike, float *narrow) {
  const float *next = line + length + SPARE;
  float *next_narrow = narrow + CHANNELS * new_width + SPARE;
  for (int64_t x = 0; x < new_width; x++) {
    const float *weights = filter->weights + x * filter->most;
    const int64_t at = CHANNELS * filter->first[x], count = alike ? alike : filter->count[x];
    Pixel sum = *(const Pixel *)(line + at) * weights[0], other = *(const Pixel *)(next + at) * weights[0];
    for (int64_t i = 1; i < count; i++) {
      sum += *(const Pixel *)(line + at + CHANNELS * i) * weights[i];
      other += *(const Pixel *)(next + at + CHANNELS * i) * weights[i];
    }
    *(Pixel *)(narrow + CHANNELS * x) = sum;
    *(Pixel *)(next_narrow + CHANNELS * x) = other;
  }
}

FOR_EACH_PROCESSOR
static void weigh_columns(const float *line, int64_t length, const Filter *filter, int64_t new_width, float *narrow) {
  switch (filter->largest) {
    case 1: add_columns(line, length, filter, new_width, 1, narrow); return;
    case 2: add_columns(line, length, filter, new_width, 2, narrow); return;
    case 3: add_columns(line, length, filter, new_width, 3, narrow); return;
    case 4: add_columns(line, length, filter, new_width, 4, narrow); return;
    case 5: add_columns(line, length, filter, new_width, 5, narrow); return;
    case MOST_ALIKE: add_columns(line, length, filter, new_width, MOST_ALIKE, narrow); return;
    default: add_columns(line, length, filter, new_width, 0, narrow);
  }
}

/* Rounded, halves up. Only the cubic overshoots. */
FOR_EACH_PROCESSOR
static void round_line(const float *restrict line, int64_t length, int bicubic, uint8_t *restrict row) {
  if (!bicubic) {
    for (int64_t j = 0; j < length; j++) row[j] = (uint8_t)(int32_t)(line[j] + 0.5f);
    return;
  }
  for (int64_t j = 0; j < length; j++) {
    const float positive = line[j] < 0 ? 0 : line[j];
    row[j] = (uint8_t)(int32_t)((positive > 255 ? 255 : positive) + 0.5f);
  }
}

/* Rows of `image` are `stride` values apart. Whether there was memory for it. */
static int resize(const uint8_t *image, int64_t stride, const Part *parts, const int64_t *new_size, int bicubic,
                  uint8_t *resized) {
  const int64_t length = CHANNELS * (parts[1].end - parts[1].first), new_length = CHANNELS * new_size[1];
  const uint8_t *corner = image + parts[0].first * stride + CHANNELS * parts[1].first;
  Filter down = {0}, across = {0};
  float *lines = calloc(LINES * (length + SPARE), sizeof(float));
  float *narrow = calloc(LINES * (new_length + SPARE), sizeof(float));
  const int made = lines && narrow && make_filter(&down, parts[0], new_size[0], bicubic) &&
                   make_filter(&across, parts[1], new_size[1], bicubic);
  for (int64_t first = 0; made && first < new_size[0]; first += LINES) {
    const int64_t end = first + LINES < new_size[0] ? first + LINES : new_size[0];
    for (int64_t y = first; y < end; y++)
      weigh_rows(corner + down.first[y] * stride, stride, length, down.weights + y * down.most, down.count[y],
                 lines + (y - first) * (length + SPARE));
    weigh_columns(lines, length, &across, new_size[1], narrow);
    for (int64_t y = first; y < end; y++)
      round_line(narrow + (y - first) * (new_length + SPARE), new_length, bicubic, resized + y * new_length);
  }
  free_filter(&down);
  free_filter(&across);
  free(lines);
  free(narrow);
  return made;
}

/* Whether what a float says lies inside of `size` pixels: not where it is no number. */
static int is_inside(float start, float length, int64_t size) {
  return start >= 0 && length > 0 && start + length <= (float)size && ceilf(start + length) > floorf(start);
}

static void compute(void *bicubic, TF_OpKernelContext *context) {
  TF_Status *status = TF_NewStatus();
  TF_Tensor *image = NULL, *box = NULL, *size = NULL, *resized = NULL;
  TF_GetInput(context, 0, &image, status);
  if (TF_GetCode(status) == TF_OK) TF_GetInput(context, 1, &box, status);
  if (TF_GetCode(status) == TF_OK) TF_GetInput(context, 2, &size, status);
  if (TF_GetCode(status) != TF_OK) goto end;
  if (TF_NumDims(image) != 3 || TF_Dim(image, 2) != CHANNELS || TF_NumDims(size) != 1 || TF_Dim(size, 0) != 2 ||
      TF_NumDims(box) != 1 || (TF_Dim(box, 0) != 0 && TF_Dim(box, 0) != 4)) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "image must be [H, W, 3], box [0] or [4] and size [2]");
    goto end;
  }
  const int32_t *wanted = TF_TensorData(size);
  const int64_t before[] = {TF_Dim(image, 0), TF_Dim(image, 1)}, after[] = {wanted[0], wanted[1], CHANNELS};
  if (before[0] > MOST_EXACT || before[1] > MOST_EXACT) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "an image must have at most 16,777,216 pixels a side");
    goto end;
  }
  if (before[0] < 1 || before[1] < 1 || after[0] < 1 || after[1] < 1) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "an image must have a pixel at least, before and after resizing");
    goto end;
  }
  const float whole[] = {0, 0, before[0], before[1]}, *at = TF_Dim(box, 0) ? TF_TensorData(box) : whole;
  if (!is_inside(at[0], at[2], before[0]) || !is_inside(at[1], at[3], before[1])) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "what is to be resized lies outside of the image");
    goto end;
  }
  const Part parts[] = {part(at[0], at[2]), part(at[1], at[3])};
  resized = TF_AllocateOutput(context, 0, TF_UINT8, after, 3, (size_t)(after[0] * after[1] * CHANNELS), status);
  if (TF_GetCode(status) != TF_OK) goto end;
  if (!resize(TF_TensorData(image), CHANNELS * before[1], parts, after, bicubic != NULL, TF_TensorData(resized)))
    TF_SetStatus(status, TF_RESOURCE_EXHAUSTED, "no memory to resize an image");
end:
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  if (image) TF_DeleteTensor(image);
  if (box) TF_DeleteTensor(box);
  if (size) TF_DeleteTensor(size);
  if (resized) TF_DeleteTensor(resized);
  TF_DeleteStatus(status);
}

/* What `compute` is handed: NULL for bilinear, anything else for bicubic. */
static void *create(TF_OpKernelConstruction *construction) {
  static char yes;
  TF_Status *status = TF_NewStatus();
  unsigned char bicubic = 0;
  TF_OpKernelConstruction_GetAttrBool(construction, "bicubic", &bicubic, status);
  if (TF_GetCode(status) != TF_OK) TF_OpKernelConstruction_Failure(construction, status);
  TF_DeleteStatus(status);
  return bicubic ? &yes : NULL;
}

static void destroy(void *bicubic) { (void)bicubic; }

static void leave_shape_open(TF_ShapeInferenceContext *context, TF_Status *status) {
  TF_ShapeInferenceContextSetUnknownShape(context, status);
}

__attribute__((constructor)) static void register_operation(void) {
  TF_Status *status = TF_NewStatus();
  TF_OpDefinitionBuilder *operation = TF_NewOpDefinitionBuilder("ResnetResize");
  TF_OpDefinitionBuilderAddInput(operation, "image: uint8");
  TF_OpDefinitionBuilderAddInput(operation, "box: float");
  TF_OpDefinitionBuilderAddInput(operation, "size: int32");
  TF_OpDefinitionBuilderAddAttr(operation, "bicubic: bool");
  TF_OpDefinitionBuilderAddOutput(operation, "resized: uint8");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(operation, leave_shape_open);
  TF_RegisterOpDefinition(operation, status);
  TF_KernelBuilder *kernel = TF_NewKernelBuilder("ResnetResize", "CPU", create, compute, destroy);
  if (TF_GetCode(status) == TF_OK) TF_RegisterKernelBuilder("ResnetResize", kernel, status);
  TF_DeleteStatus(status);
}
