/* What onednn.c uses of oneDNN's C interface, which is stable through all versions 3 (dnnl.h, dnnl_types.h).
 *
 * The library is opened when the program runs, so that neither it nor its headers need be there to compile against.
 */
#include <dlfcn.h> /* RTLD_DEFAULT needs _GNU_SOURCE, see onednn.c */
#include <stddef.h>
#include <stdint.h>

typedef int64_t Dims[12];
typedef struct {
  int name;
  void *memory;
} Argument;

enum { CPU = 1, IN_ORDER = 1, FLOAT32 = 3, ANY_LAYOUT = 1, FORWARD_TRAINING = 64, DIRECT = 1, USER_SCRATCHPAD = 1 };
enum { QUERY_WEIGHTS = 131, QUERY_DIFF_WEIGHTS = 132, QUERY_SCRATCHPAD = 136 };
enum { QUERY_STRIDES = 14, QUERY_BLOCKS = 263, QUERY_BLOCK_SIZES = 264, QUERY_BLOCK_DIMENSIONS = 265 };
enum { SRC = 1, DST = 17, WEIGHTS = 33, SCRATCHPAD = 80, DIFF_SRC = 129, DIFF_DST = 145, DIFF_WEIGHTS = 161 };
enum { FROM = 1, TO = 17 };
enum { ADD = 0x1fff0, MULTIPLY = 0x1fff1, RECTIFY = 0x20 };
#define STEP(number) (((number) + 1) * 32768 | 2) /* the second operand of a step behind the convolution */
enum { SUCCESS = 0, OUT_OF_MEMORY = 1 };

/* Descriptions, primitives and the like are all opaque pointers there. Every function but two returns a status. */
static struct {
  int (*engine_create)(void **, int kind, size_t index);
  int (*stream_create)(void **, void *engine, unsigned flags);
  int (*stream_wait)(void *);
  int (*stream_destroy)(void *);
  int (*memory_desc_create_with_strides)(void **, int rank, const Dims, int type, const Dims strides);
  int (*memory_desc_create_with_tag)(void **, int rank, const Dims, int type, int tag);
  int (*memory_desc_create_submemory)(void **, const void *whole, const Dims dims, const Dims offsets);
  int (*memory_desc_equal)(const void *, const void *);
  size_t (*memory_desc_get_size)(const void *);
  int (*memory_desc_query)(const void *, int what, void *result);
  int (*memory_create)(void **, const void *description, void *engine, void *data);
  int (*memory_destroy)(void *);
  int (*convolution_forward_primitive_desc_create)(void **, void *engine, int direction, int algorithm, const void *src,
                                                   const void *weights, const void *bias, const void *dst,
                                                   const Dims strides, const Dims dilates, const Dims padding_before,
                                                   const Dims padding_after, const void *attributes);
  int (*convolution_backward_data_primitive_desc_create)(void **, void *engine, int algorithm, const void *diff_src,
                                                         const void *weights, const void *diff_dst, const Dims strides,
                                                         const Dims dilates, const Dims padding_before,
                                                         const Dims padding_after, const void *forward,
                                                         const void *attributes);
  int (*convolution_backward_weights_primitive_desc_create)(void **, void *engine, int algorithm, const void *src,
                                                            const void *diff_weights, const void *diff_bias,
                                                            const void *diff_dst, const Dims strides,
                                                            const Dims dilates, const Dims padding_before,
                                                            const Dims padding_after, const void *forward,
                                                            const void *attributes);
  int (*reorder_primitive_desc_create)(void **, const void *from, void *engine, const void *to, void *other_engine,
                                       const void *attributes);
  const void *(*primitive_desc_query_md)(const void *, int what, int index);
  int (*primitive_attr_create)(void **);
  int (*primitive_attr_set_scratchpad_mode)(void *, int mode);
  int (*primitive_attr_set_post_ops)(void *, const void *steps);
  int (*post_ops_create)(void **);
  int (*post_ops_append_binary)(void *, int algorithm, const void *operand);
  int (*post_ops_append_sum)(void *, float scale, int32_t zero_point, int type);
  int (*post_ops_append_eltwise)(void *, int algorithm, float alpha, float beta);
  int (*primitive_create)(void **, const void *description);
  int (*primitive_execute)(const void *, void *stream, int count, const Argument *);
  int (*sgemm)(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
               int64_t row_of_a, const float *b, int64_t row_of_b, float beta, float *c, int64_t row_of_c);
} dnnl;

/* Of the OpenMP that the library was built with. They set and read what holds for the calling thread alone. */
static void (*omp_set_num_threads)(int);
static int (*omp_get_max_threads)(void);

/* NULL, or what is wrong with the library at `path`. */
static const char *open_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return dlerror();
#define FIND(pointer, place, name) \
  if (!(*(void **)&(pointer) = dlsym(place, name))) return dlerror()
  /* The library's own calls go to an OpenMP that is open to the whole process first, if there is one. */
  void *const openmp = dlsym(RTLD_DEFAULT, "omp_set_num_threads") ? RTLD_DEFAULT : library;
  FIND(omp_set_num_threads, openmp, "omp_set_num_threads");
  FIND(omp_get_max_threads, openmp, "omp_get_max_threads");
#define FIND_DNNL(name) FIND(dnnl.name, library, "dnnl_" #name)
  FIND_DNNL(engine_create);
  FIND_DNNL(stream_create);
  FIND_DNNL(stream_wait);
  FIND_DNNL(stream_destroy);
  FIND_DNNL(memory_desc_create_with_strides);
  FIND_DNNL(memory_desc_create_with_tag);
  FIND_DNNL(memory_desc_create_submemory);
  FIND_DNNL(memory_desc_equal);
  FIND_DNNL(memory_desc_get_size);
  FIND_DNNL(memory_desc_query);
  FIND_DNNL(memory_create);
  FIND_DNNL(memory_destroy);
  FIND_DNNL(convolution_forward_primitive_desc_create);
  FIND_DNNL(convolution_backward_data_primitive_desc_create);
  FIND_DNNL(convolution_backward_weights_primitive_desc_create);
  FIND_DNNL(reorder_primitive_desc_create);
  FIND_DNNL(primitive_desc_query_md);
  FIND_DNNL(primitive_attr_create);
  FIND_DNNL(primitive_attr_set_scratchpad_mode);
  FIND_DNNL(primitive_attr_set_post_ops);
  FIND_DNNL(post_ops_create);
  FIND_DNNL(post_ops_append_binary);
  FIND_DNNL(post_ops_append_sum);
  FIND_DNNL(post_ops_append_eltwise);
  FIND_DNNL(primitive_create);
  FIND_DNNL(primitive_execute);
  FIND_DNNL(sgemm);
  return NULL;
}
