// What a program gets from its own machine's glibc, and not from one of version 2.28. `xtask/src/oldest` links it into the
// program for packages; everything here is hidden, so that no library sees it.
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/stat.h>

typedef int Main(int, char**, char**);
typedef void Init(int, char**, char**);

extern Init* __preinit_array_start[];
extern Init* __preinit_array_end[];
extern Init* __init_array_start[];
extern Init* __init_array_end[];
extern void _init(void);

extern int __real___libc_start_main(Main*, int, char**, Init*, void (*)(void), void (*)(void), void*);
int __wrap___libc_start_main(Main*, int, char**, Init*, void (*)(void), void (*)(void), void*);

// Before 2.34 a program ran its constructors itself, with code that was linked into it.
static void construct(int argc, char** argv, char** envp) {
  const ptrdiff_t num_early = __preinit_array_end - __preinit_array_start;
  for (ptrdiff_t i = 0; i < num_early; i++) __preinit_array_start[i](argc, argv, envp);
  _init();
  const ptrdiff_t num = __init_array_end - __init_array_start;
  for (ptrdiff_t i = 0; i < num; i++) __init_array_start[i](argc, argv, envp);
}

// Every glibc calls what it is given here; a newer one runs constructors by itself only where it is given nothing.
int __wrap___libc_start_main(
    Main* main, int argc, char** argv, Init* init, void (*fini)(void), void (*rtld_fini)(void), void* stack_end) {
  return __real___libc_start_main(
      main, argc, argv, init == NULL ? construct : init, fini, rtld_fini, stack_end);
}

// Before 2.33 these were inlined, and called with the version of the structure, which is 1 on x86-64 and has never changed.
enum { STAT_VERSION = 1 };

extern int __xstat(int, const char*, struct stat*);
extern int __lxstat(int, const char*, struct stat*);
extern int __fxstat(int, int, struct stat*);
extern int __fxstatat(int, int, const char*, struct stat*, int);

int stat(const char* path, struct stat* to) { return __xstat(STAT_VERSION, path, to); }
int lstat(const char* path, struct stat* to) { return __lxstat(STAT_VERSION, path, to); }
int fstat(int fd, struct stat* to) { return __fxstat(STAT_VERSION, fd, to); }
int fstatat(int fd, const char* path, struct stat* to, int flags) {
  return __fxstatat(STAT_VERSION, fd, path, to, flags);
}

// The same structure under another name.
int stat64(const char* path, struct stat64* to) { return __xstat(STAT_VERSION, path, (struct stat*)to); }
int lstat64(const char* path, struct stat64* to) { return __lxstat(STAT_VERSION, path, (struct stat*)to); }
int fstat64(int fd, struct stat64* to) { return __fxstat(STAT_VERSION, fd, (struct stat*)to); }
int fstatat64(int fd, const char* path, struct stat64* to, int flags) {
  return __fxstatat(STAT_VERSION, fd, path, (struct stat*)to, flags);
}

_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "two structures where there was one");

// New in 2.32: whether locks may be left out. No is always right.
char __libc_single_threaded = 0;
