/* Fills memory with 0xFF, which is NaN in float32 and in bfloat16, as it is handed out: what a kernel reads before
   anything was written there shows in its result. For Linux with glibc:
   cc -O2 -shared -fPIC -o poison.so poison.c; LD_PRELOAD=./poison.so python ... */
#include <errno.h>
#include <stddef.h>
#include <string.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

static void *filled(void *block, size_t size, size_t smallest) {
  if (block && size >= smallest) memset(block, 0xFF, size);
  return block;
}

/* Small blocks hold no maps, and filling them takes most of the time. */
void *malloc(size_t size) { return filled(__libc_malloc(size), size, 4096); }

void *memalign(size_t alignment, size_t size) { return filled(__libc_memalign(alignment, size), size, 64); }

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **block, size_t alignment, size_t size) {
  *block = memalign(alignment, size);
  return *block ? 0 : ENOMEM;
}
