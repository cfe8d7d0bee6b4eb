/* Grouped-query attention in C, judged by the suite: reads the cases that `gqa vectors DIR` wrote, writes answers.

     cc -O2 -o attention attention.c -lm && ./attention vectors answers && gqa conform --answers answers

   It takes float32, causal, scale and masks, and leaves out the cases that need more: they count as not supported.
   With -DTILED query head n reads KV head n % K, which `gqa conform` then calls by its name. */
#include <dirent.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int shape[4], boolean, half; const unsigned char *data; } Tensor;

/* A tensor of a safetensors header, or data NULL. Shapes of fewer axes get ones in front. */
static Tensor find(const char *header, const unsigned char *data, const char *name) {
  Tensor t = {{1, 1, 1, 1}, 0, 0, NULL};
  char key[64];
  snprintf(key, sizeof key, "\"%s\":{", name);
  const char *at = strstr(header, key);
  if (!at) return t;
  t.boolean = strncmp(strstr(at, "\"dtype\":\"") + 9, "BOOL", 4) == 0;
  t.half = strncmp(strstr(at, "\"dtype\":\"") + 9, "F16", 3) == 0;
  const char *shape = strstr(at, "\"shape\":[") + 9;
  int sizes[4], count = 0;
  while (*shape != ']' && count < 4) {
    sizes[count++] = (int)strtol(shape, (char **)&shape, 10);
    if (*shape == ',') shape++;
  }
  for (int i = 0; i < count; i++) t.shape[4 - count + i] = sizes[i];
  t.data = data + strtol(strstr(at, "\"data_offsets\":[") + 16, NULL, 10);
  return t;
}

static float number(const Tensor *t, int a, int b, int c, int d) {
  const int *n = t->shape;
  size_t i = (((size_t)(n[0] > 1 ? a : 0) * n[1] + (n[1] > 1 ? b : 0)) * n[2] + (n[2] > 1 ? c : 0)) * n[3]
             + (n[3] > 1 ? d : 0);
  return t->boolean ? (float)t->data[i] : ((const float *)t->data)[i];
}

static int attend(const char *header, const unsigned char *data, FILE *out) {
  const char *more[] = {"\"window\":", "\"chunk\":", "\"offset\":", "\"softcap\":", "\"sinks\":", "\"dropout_multiplier\":"};
  for (size_t i = 0; i < sizeof more / sizeof *more; i++)
    if (strstr(header, more[i])) return 0;
  Tensor q = find(header, data, "query"), k = find(header, data, "key"), v = find(header, data, "value");
  Tensor mask = find(header, data, "mask");
  if (mask.half) return 0;
  int B = q.shape[0], N = q.shape[1], T = q.shape[2], H = q.shape[3], K = k.shape[1], S = k.shape[2], V = v.shape[3];
  int causal = strstr(header, "\"causal\":\"true\"") != NULL;
  const char *scale_at = strstr(header, "\"scale\":\"");
  float scale = scale_at ? strtof(scale_at + 9, NULL) : 1 / sqrtf((float)H);
  float *output = calloc((size_t)B * N * T * V, sizeof *output), *weights = malloc(S * sizeof *weights);
  for (int b = 0; b < B; b++)
    for (int n = 0; n < N; n++)
      for (int i = 0; i < T; i++) {
#ifdef TILED
        int head = n % K;
#else
        int head = n / (N / K);
#endif
        float top = -INFINITY, total = 0;
        for (int j = 0; j < S; j++) {
          float bias = mask.data ? number(&mask, b, n, i, j) : 0;
          int hidden = mask.data && (mask.boolean ? bias == 0 : bias == -INFINITY);
          weights[j] = -INFINITY;
          if (hidden || (causal && j > i + S - T)) continue;
          float score = 0;
          for (int h = 0; h < H; h++) score += number(&q, b, n, i, h) * number(&k, b, head, j, h);
          score = score * scale + (mask.boolean ? 0 : bias);
          weights[j] = score < -3.4028234e38f ? -3.4028234e38f : score;
          if (weights[j] > top) top = weights[j];
        }
        if (top == -INFINITY) continue; /* no visible key: 0 */
        for (int j = 0; j < S; j++)
          if (weights[j] > -INFINITY) total += weights[j] = expf(weights[j] - top);
          else weights[j] = 0;
        float *row = output + (((size_t)b * N + n) * T + i) * V;
        for (int j = 0; j < S; j++)
          for (int d = 0; weights[j] > 0 && d < V; d++) row[d] += weights[j] / total * number(&v, b, head, j, d);
      }
  char text[256];
  uint64_t bytes = (uint64_t)B * N * T * V * sizeof *output;
  uint64_t length = (uint64_t)snprintf(text, sizeof text,
      "{\"output\":{\"dtype\":\"F32\",\"shape\":[%d,%d,%d,%d],\"data_offsets\":[0,%llu]}}", B, N, T, V,
      (unsigned long long)bytes);
  fwrite(&length, sizeof length, 1, out);
  fwrite(text, 1, length, out);
  fwrite(output, 1, bytes, out);
  free(output);
  free(weights);
  return 1;
}

int main(int count, char **arguments) {
  if (count != 3) return fprintf(stderr, "usage: attention VECTORS ANSWERS\n"), 2;
  DIR *folder = opendir(arguments[1]);
  if (!folder) return perror(arguments[1]), 2;
  for (struct dirent *entry; (entry = readdir(folder));) {
    if (!strstr(entry->d_name, ".function.float32.safetensors")) continue;
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", arguments[1], entry->d_name);
    FILE *in = fopen(path, "rb");
    if (!in) return perror(path), 2;
    fseek(in, 0, SEEK_END);
    long size = ftell(in);
    rewind(in);
    unsigned char *file = malloc(size);
    if (fread(file, 1, size, in) != (size_t)size) return perror(path), 2;
    fclose(in);
    uint64_t length;
    memcpy(&length, file, sizeof length);
    char *header = malloc(length + 1);
    memcpy(header, file + 8, length);
    header[length] = 0;
    snprintf(path, sizeof path, "%s/%s", arguments[2], entry->d_name);
    FILE *out = fopen(path, "wb");
    if (!out) return perror(path), 2;
    int answered = attend(header, file + 8 + length, out);
    fclose(out);
    if (!answered) remove(path);
    free(header);
    free(file);
  }
  closedir(folder);
  return 0;
}
