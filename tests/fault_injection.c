/* Counts the calls that change a folder, and fails one of them; loaded by LD_PRELOAD, controlled by the environment.

   FAULT_FOLDER   calls on files below this folder are counted (resolved path)
   FAULT_COUNT    file of 8 bytes with the count, shared by all processes
   FAULT_AT       number of the call that fails, from 1; 0: none
   FAULT_KIND     ENOSPC: the disk is full from that call on; EIO: that call fails; KILL: SIGKILL at that call
   FAULT_LOG      file to which each counted call is appended: number, call, inode, path (optional)

   A write of several bytes is cut in half by ENOSPC and KILL, as a full disk and a kill do. Calls that free space
   never fail with ENOSPC. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
enum { PASS, HALF, FAIL };
/* Write the resolved path of `path`, which may be new, relative to the folder `at`. */
static void resolve(int at, const char *path, char *out) {
    char link[64], parent[PATH_MAX], full[PATH_MAX + 8];
    out[0] = 0;
    if (path[0] == '/' || at == AT_FDCWD) snprintf(full, sizeof full, "%s", path);
    else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t size = readlink(link, parent, sizeof parent - 1);
        if (size < 0) return;
        parent[size] = 0;
        snprintf(full, sizeof full, "%s/%s", parent, path);
    }
    char *slash = strrchr(full, '/'), *name = slash ? slash + 1 : full, folder[PATH_MAX];
    if (slash) *slash = 0;
    if (realpath(slash ? (full[0] ? full : "/") : ".", folder)) snprintf(out, PATH_MAX, "%.3800s/%.255s", folder, name);
}

static void resolve_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, out, PATH_MAX - 1);
    out[size < 0 ? 0 : size] = 0;
}

/* Count a call on `path`; return what to do with it, and set errno if it fails. */
static int count(const char *call, const char *path, int frees, size_t bytes) {
    const char *folder = getenv("FAULT_FOLDER"), *shared = getenv("FAULT_COUNT"), *kind = getenv("FAULT_KIND");
    size_t length = folder ? strlen(folder) : 0;
    if (!length || !shared || !kind || strncmp(path, folder, length) || (path[length] != '/' && path[length])) return PASS;
    static long *counter;
    if (!counter) {
        int fd = openat(AT_FDCWD, shared, O_RDWR);
        counter = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
    }
    long number = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST), at = atol(getenv("FAULT_AT"));
    if (getenv("FAULT_LOG")) {
        REAL(write);
        char line[PATH_MAX + 64];
        struct stat file = {0};
        int fd = openat(AT_FDCWD, getenv("FAULT_LOG"), O_WRONLY | O_APPEND), found = !stat(path, &file);
        int size = snprintf(line, sizeof line, "%ld %s %ld %s\n", number, call, found ? (long)file.st_ino : 0, path);
        if (real(fd, line, size) != size) abort();
        close(fd);
    }
    int saved = kind[1] == 'N' ? ENOSPC : EIO;
    if (!at || number < at || (kind[0] == 'E' && (saved == EIO ? number > at : frees))) return PASS;
    if (kind[0] == 'K' && bytes < 2) kill(getpid(), SIGKILL);
    if (number == at && bytes > 1 && (kind[0] == 'K' || saved == ENOSPC)) return HALF;
    errno = saved;
    return FAIL;
}

static int killed(void) {  /* after half a write */
    if (getenv("FAULT_KIND")[0] == 'K') kill(getpid(), SIGKILL);
    return 0;
}

#define ON_FD(call, frees, bytes) char path[PATH_MAX]; resolve_fd(fd, path); int what = count(#call, path, frees, bytes)
#define ON_PATH(call, at, name, frees) char path[PATH_MAX]; resolve(at, name, path); int what = count(#call, path, frees, 0)
#define WRITER(name, offset) \
    ssize_t name(int fd, const void *data, size_t size offset(, off_t at)) { \
        REAL(name); ON_FD(name, 0, size); \
        if (what == FAIL) return -1; \
        ssize_t done = real(fd, data, what == HALF ? size / 2 : size offset(, at)); \
        return what == HALF && killed() ? -1 : done; \
    }
#define WITH(...) __VA_ARGS__
#define WITHOUT(...)
WRITER(write, WITHOUT)
WRITER(pwrite, WITH)
WRITER(pwrite64, WITH)

ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(writev); ON_FD(writev, 0, number);
    if (what == FAIL) return -1;
    ssize_t done = real(fd, parts, what == HALF ? number / 2 : number);
    return what == HALF && killed() ? -1 : done;
}
size_t fwrite(const void *data, size_t size, size_t number, FILE *stream) {
    REAL(fwrite); int fd = fileno(stream); ON_FD(fwrite, 0, size * number);
    if (what == FAIL) return 0;
    size_t done = real(data, size, what == HALF ? number / 2 : number, stream);
    if (what == HALF) { fflush(stream); killed(); errno = ENOSPC; }
    return done;
}
#define SENDER(name, offset) \
    ssize_t name(int fd, int from, offset *at, size_t size) { \
        REAL(name); ON_FD(name, 0, 0); return what == FAIL ? -1 : real(fd, from, at, size); \
    }
SENDER(sendfile, off_t)
SENDER(sendfile64, off64_t)
ssize_t copy_file_range(int from, off64_t *in, int fd, off64_t *out, size_t size, unsigned flags) {
    REAL(copy_file_range); ON_FD(copy_file_range, 0, 0); return what == FAIL ? -1 : real(from, in, fd, out, size, flags);
}
#define TRUNCATE(name, type) \
    int name(int fd, type size) { REAL(name); ON_FD(name, size == 0, 0); return what == FAIL ? -1 : real(fd, size); }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
int fsync(int fd) { REAL(fsync); ON_FD(fsync, 0, 0); return what == FAIL ? -1 : real(fd); }

#define OPEN(name, at, parameters, values) \
    int name(parameters int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        REAL(name); \
        if (flags & (O_CREAT | O_TRUNC)) { ON_PATH(open, at, file, 0); if (what == FAIL) return -1; } \
        return real(values flags, mode); \
    }
OPEN(open, AT_FDCWD, WITH(const char *file,), WITH(file,))
OPEN(open64, AT_FDCWD, WITH(const char *file,), WITH(file,))
OPEN(openat64, fd, WITH(int fd, const char *file,), WITH(fd, file,))

#define CHANGE(name, at, file, frees, parameters, values) \
    int name parameters { REAL(name); ON_PATH(name, at, file, frees); return what == FAIL ? -1 : real values; }
CHANGE(rename, AT_FDCWD, to, 0, (const char *from, const char *to), (from, to))
CHANGE(renameat, fd, to, 0, (int other, const char *from, int fd, const char *to), (other, from, fd, to))
CHANGE(link, AT_FDCWD, to, 0, (const char *from, const char *to), (from, to))
CHANGE(mkdir, AT_FDCWD, file, 0, (const char *file, mode_t mode), (file, mode))
CHANGE(unlink, AT_FDCWD, file, 1, (const char *file), (file))
CHANGE(unlinkat, fd, file, 1, (int fd, const char *file, int flags), (fd, file, flags))
CHANGE(rmdir, AT_FDCWD, file, 1, (const char *file), (file))
