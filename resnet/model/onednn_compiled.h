/* What oneDNN has compiled for a convolution's shape, kept for the life of the process, and how one thread executes it. */
#include <string.h>

#include "onednn_interface.h"
#include "onednn_work.h"

/* What oneDNN compiles a convolution for. */
typedef enum { OUTPUT, INPUT_GRADIENT, WEIGHT_GRADIENT, EVALUATED, EVALUATED_SUM } Kind;
enum { GROUPS = 6, RELU = 7 }; /* in a window */
typedef struct {
  int64_t kind, image[4], kernel[4], output[4], window[8];
} Shape;

/* One that is compiled. `reorder` is NULL where the kernel is laid out as oneDNN wants it (or leaves its gradient). */
typedef struct Compiled {
  Shape shape;
  int status; /* not SUCCESS: oneDNN has refused it, and nothing else here counts */
  void *primitive, *reorder;
  void *image, *output, *kernel;        /* descriptions of memory */
  void *channels;                       /* the same, of scale and shift; NULL where there are none */
  const void *laid_out, *scratch;       /* the same; oneDNN's own */
  size_t laid_out_size, scratch_size;   /* bytes */
  struct Compiled *next;
} Compiled;

static void *engine, *caller_scratch; /* the latter: attributes that ask for scratch memory of the caller's */
static Compiled *compiled[1024];
static pthread_mutex_t compiling = PTHREAD_MUTEX_INITIALIZER;

#define TRY(call)                \
  do {                           \
    const int status_ = call;    \
    if (status_) return status_; \
  } while (0)

/* The kernel [h,w,I,O] in oneDNN's order of dimensions, ([groups,] O, I, h, w). */
static int describe_kernel(const Shape *s, Dims dims, Dims strides) {
  const int64_t groups = s->window[GROUPS], in = s->kernel[2], out = s->kernel[3];
  const int64_t size[] = {groups, out / groups, in, s->kernel[0], s->kernel[1]};
  const int64_t step[] = {out / groups, 1, out, s->kernel[1] * in * out, in * out};
  const int skip = groups == 1;
  memcpy(dims, size + skip, (5 - skip) * sizeof *size);
  memcpy(strides, step + skip, (5 - skip) * sizeof *step);
  return 5 - skip;
}

static int describe_rows(const int64_t *rows, void **description) {
  const Dims dims = {rows[0], rows[3], rows[1], rows[2]};
  const Dims strides = {rows[1] * rows[2] * rows[3], 1, rows[2] * rows[3], rows[3]};
  return dnnl.memory_desc_create_with_strides(description, 4, dims, FLOAT32, strides);
}

/* What is done to each output before it is written: · scale, + shift, + addend, ReLU. */
static int make_attributes(Compiled *c, void **attributes) {
  const Dims channels = {1, c->shape.kernel[3], 1, 1}, strides = {c->shape.kernel[3], 1, 1, 1};
  void *steps;
  TRY(dnnl.memory_desc_create_with_strides(&c->channels, 4, channels, FLOAT32, strides));
  TRY(dnnl.post_ops_create(&steps));
  TRY(dnnl.post_ops_append_binary(steps, MULTIPLY, c->channels));
  TRY(dnnl.post_ops_append_binary(steps, ADD, c->channels));
  if (c->shape.kind == EVALUATED_SUM) TRY(dnnl.post_ops_append_binary(steps, ADD, c->output));
  if (c->shape.window[RELU]) TRY(dnnl.post_ops_append_eltwise(steps, RECTIFY, 0, 0));
  TRY(dnnl.primitive_attr_create(attributes));
  TRY(dnnl.primitive_attr_set_scratchpad_mode(*attributes, USER_SCRATCHPAD));
  return dnnl.primitive_attr_set_post_ops(*attributes, steps);
}

/* What oneDNN makes for it stays for the life of the process: a network has some dozens of shapes. */
static int compile(Compiled *c) {
  const Shape *s = &c->shape;
  const int64_t *w = s->window;
  const Dims strides = {w[0], w[1]}, undilated = {0, 0}, before = {w[2], w[4]}, after = {w[3], w[5]};
  Dims dims, steps;
  void *any, *forward, *description, *reorder, *attributes = caller_scratch;
  const int rank = describe_kernel(s, dims, steps), gradient = s->kind == WEIGHT_GRADIENT;
  TRY(dnnl.memory_desc_create_with_strides(&c->kernel, rank, dims, FLOAT32, steps));
  TRY(dnnl.memory_desc_create_with_tag(&any, rank, dims, FLOAT32, ANY_LAYOUT));
  TRY(describe_rows(s->image, &c->image));
  TRY(describe_rows(s->output, &c->output));
  if (s->kind >= EVALUATED) TRY(make_attributes(c, &attributes));
  TRY(dnnl.convolution_forward_primitive_desc_create(&forward, engine, FORWARD_TRAINING, DIRECT, c->image, any, NULL,
                                                     c->output, strides, undilated, before, after, attributes));
  description = forward;
  if (s->kind == INPUT_GRADIENT)
    TRY(dnnl.convolution_backward_data_primitive_desc_create(&description, engine, DIRECT, c->image, any, c->output,
                                                             strides, undilated, before, after, forward,
                                                             caller_scratch));
  if (gradient)
    TRY(dnnl.convolution_backward_weights_primitive_desc_create(&description, engine, DIRECT, c->image, any, NULL,
                                                                c->output, strides, undilated, before, after, forward,
                                                                caller_scratch));
  c->laid_out = dnnl.primitive_desc_query_md(description, gradient ? QUERY_DIFF_WEIGHTS : QUERY_WEIGHTS, 0);
  c->laid_out_size = dnnl.memory_desc_get_size(c->laid_out);
  c->scratch = dnnl.primitive_desc_query_md(description, QUERY_SCRATCHPAD, 0);
  c->scratch_size = c->scratch ? dnnl.memory_desc_get_size(c->scratch) : 0;
  TRY(dnnl.primitive_create(&c->primitive, description));
  if (dnnl.memory_desc_equal(c->kernel, c->laid_out)) return SUCCESS;
  TRY(dnnl.reorder_primitive_desc_create(&reorder, gradient ? c->laid_out : c->kernel, engine,
                                         gradient ? c->kernel : c->laid_out, engine, NULL));
  return dnnl.primitive_create(&c->reorder, reorder);
}

static int find(const Shape *shape, const Compiled **found) {
  const unsigned char *bytes = (const unsigned char *)shape;
  uint32_t hash = 2166136261u; /* FNV-1a */
  for (size_t i = 0; i < sizeof *shape; ++i) hash = (hash ^ bytes[i]) * 16777619u;
  Compiled **first = &compiled[hash % (sizeof compiled / sizeof *compiled)], *c;
  pthread_mutex_lock(&compiling);
  for (c = *first; c && memcmp(&c->shape, shape, sizeof *shape); c = c->next) continue;
  if (!c && (c = calloc(1, sizeof *c))) {
    c->shape = *shape;
    c->status = compile(c);
    c->next = *first;
    *first = c;
  }
  pthread_mutex_unlock(&compiling);
  *found = c;
  return c ? c->status : OUT_OF_MEMORY;
}

/* What a thread keeps until it ends: a stream, and memory for scratch and for kernels that are laid out anew, as large
 * as was ever asked for. */
enum { SCRATCH, LAID_OUT };
typedef struct {
  void *stream, *memory[2];
  size_t size[2];
} Own;
static pthread_key_t own_key;

static void free_own(void *of_a_thread) {
  Own *own = of_a_thread;
  if (own->stream) dnnl.stream_destroy(own->stream);
  free(own->memory[SCRATCH]);
  free(own->memory[LAID_OUT]);
  free(own);
}

static Own *get_own(void) {
  Own *own = pthread_getspecific(own_key);
  if (own || !(own = calloc(1, sizeof *own))) return own;
  if (!dnnl.stream_create(&own->stream, engine, IN_ORDER) && !pthread_setspecific(own_key, own)) return own;
  free_own(own);
  return NULL;
}

static void *own_memory(int which, size_t size) {
  Own *own = get_own();
  if (!own) return NULL;
  if (own->size[which] < size) {
    free(own->memory[which]);
    own->size[which] = 0;
    if (posix_memalign(&own->memory[which], 64, size)) return own->memory[which] = NULL;
    own->size[which] = size;
  }
  return own->memory[which];
}

enum { MOST_ARGUMENTS = 7 };

static int execute(const void *primitive, int count, const int *names, const void *const *descriptions,
                   void *const *memory) {
  const Own *own = get_own();
  Argument arguments[MOST_ARGUMENTS];
  int status = own ? SUCCESS : OUT_OF_MEMORY, made = 0;
  for (; made < count && !status; made += !status) {
    arguments[made].name = names[made];
    status = dnnl.memory_create(&arguments[made].memory, descriptions[made], engine, memory[made]);
  }
  if (!status) status = dnnl.primitive_execute(primitive, own->stream, count, arguments);
  if (!status) status = dnnl.stream_wait(own->stream);
  while (made) dnnl.memory_destroy(arguments[--made].memory);
  return status;
}

static int reorder(const Compiled *c, void *from, void *to) {
  static const int names[] = {FROM, TO};
  const int gradient = c->shape.kind == WEIGHT_GRADIENT;
  const void *const descriptions[] = {gradient ? c->laid_out : c->kernel, gradient ? c->kernel : c->laid_out};
  void *const memory[] = {from, to};
  return execute(c->reorder, 2, names, descriptions, memory);
}
