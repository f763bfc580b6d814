/* Fails the N-th write, flush or rename below a folder once, and lists all of them; does nothing until asked.

   The count is shared with the process's children. stdio's own writes do not come by here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long *count;
static char folder[PATH_MAX];
static long failing_one;
static int failing_with, list;

/* From now on list the calls below `below` in the file `calls`, and fail number `n` with `error`; 0 fails none. */
int fail_call(const char *below, const char *calls, long n, int error) {
    list = open(calls, O_WRONLY | O_CREAT | O_APPEND, 0600);
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(folder, sizeof folder, "%s", below);
    failing_one = n, failing_with = error;
    return list < 0 || count == MAP_FAILED ? -1 : 0;
}

static int fails_at(const char *call, const char *path) {
    if (count == NULL || strncmp(path, folder, strlen(folder)) != 0) return 0;
    long number = atomic_fetch_add(count, 1) + 1;
    dprintf(list, "%ld %s %s\n", number, call, path + strlen(folder));
    if (number != failing_one) return 0;
    errno = failing_with;
    return 1;
}

static int fails(const char *call, int file) {
    char link[64], path[PATH_MAX];
    if (count == NULL) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails_at(call, path);
}

#define ON_FILE(result, name, parameters, arguments) \
    result name parameters { \
        static result(*real) parameters; \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name); \
        return fails(#name, file) ? -1 : real arguments; \
    }
#define ON_PATH(name, parameters, arguments) \
    int name parameters { \
        static int(*real) parameters; \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name); \
        return fails_at(#name, to) ? -1 : real arguments; \
    }
#define ON_SPACE(name) /* which returns the error */ \
    int name(int file, off_t at, off_t size) { \
        static int (*real)(int, off_t, off_t); \
        if (!real) real = (int (*)(int, off_t, off_t))dlsym(RTLD_NEXT, #name); \
        return fails(#name, file) ? failing_with : real(file, at, size); \
    }

ON_FILE(ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
ON_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
ON_FILE(ssize_t, writev, (int file, const struct iovec *data, int count), (file, data, count))
ON_FILE(ssize_t, sendfile, (int file, int from, off_t *at, size_t size), (file, from, at, size))
ON_FILE(ssize_t, sendfile64, (int file, int from, off_t *at, size_t size), (file, from, at, size))
ON_FILE(int, ftruncate, (int file, off_t size), (file, size))
ON_FILE(int, ftruncate64, (int file, off_t size), (file, size))
ON_FILE(int, fsync, (int file), (file))
ON_FILE(int, fdatasync, (int file), (file))
ON_PATH(rename, (const char *from, const char *to), (from, to))
ON_PATH(renameat, (int in, const char *from, int into, const char *to), (in, from, into, to))
ON_SPACE(posix_fallocate)
ON_SPACE(posix_fallocate64)
