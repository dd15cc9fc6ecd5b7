/* SPDX-License-Identifier: Apache-2.0 */
/* test_directory.h - a directory that a test fills and that is gone afterwards. */
#ifndef WEIR_TESTS_TEST_DIRECTORY_H
#define WEIR_TESTS_TEST_DIRECTORY_H

#include <dirent.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct test_directory {
    char path[256];
    char file[768]; /* of the last test_directory_file() */
} test_directory;

static inline void test_directory_make(test_directory *directory)
{
    const char *parent = getenv("TMPDIR");
    snprintf(directory->path, sizeof(directory->path), "%s/weir-test-XXXXXX",
             parent != NULL ? parent : "/tmp");
    if (mkdtemp(directory->path) == NULL)
        abort();
}

static inline int test_directory_remove_one(const char *path, const struct stat *info, int kind,
                                            struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static inline void test_directory_remove(test_directory *directory)
{
    nftw(directory->path, test_directory_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The path of `name` in the directory, until the next call. */
static inline const char *test_directory_file(test_directory *directory, const char *name)
{
    snprintf(directory->file, sizeof(directory->file), "%s/%s", directory->path, name);
    return directory->file;
}

static inline void test_directory_write(test_directory *directory, const char *name,
                                        const void *bytes, size_t n_bytes)
{
    FILE *file = fopen(test_directory_file(directory, name), "wb");
    if (file == NULL || fwrite(bytes, 1, n_bytes, file) != n_bytes || fclose(file) != 0)
        abort();
}

/* A safetensors file of this header and data. */
static inline void test_directory_safetensors(test_directory *directory, const char *name,
                                              const char *header, const void *data, size_t n_bytes)
{
    uint64_t length = strlen(header);
    FILE *file = fopen(test_directory_file(directory, name), "wb");
    if (file == NULL || fwrite(&length, 8, 1, file) != 1 ||
        fwrite(header, 1, length, file) != length || fwrite(data, 1, n_bytes, file) != n_bytes ||
        fclose(file) != 0)
        abort();
}

/* How many names a directory holds, hidden ones included; /proc/self/fd counts open files. */
static inline size_t test_directory_count(const char *path)
{
    size_t n = 0;
    DIR *listing = opendir(path);
    if (listing == NULL)
        abort();
    for (struct dirent *entry = readdir(listing); entry != NULL; entry = readdir(listing))
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(listing);
    return n;
}

#endif
