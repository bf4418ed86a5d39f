// Answers every request with 503 and the page of its config, while the service is being worked on.
#include <stdlib.h>
#include <string.h>
#include "request_plugin.h"

static request_plugin_string_t page;

bool exports_piko_plugin_lifecycle_init(request_plugin_string_t *config, request_plugin_string_t *error) {
  if (config->len == 0) {
    request_plugin_string_dup(error, "config: the page is missing, such as `config: back at noon`");
    return false;
  }
  // Ours from now on; lives as long as the instance.
  page = *config;
  return true;
}

static void header(piko_plugin_types_header_t *to, const char *name, const char *value) {
  request_plugin_string_t copy;
  request_plugin_string_dup(&to->f0, name);
  request_plugin_string_dup(&copy, value);
  to->f1.ptr = (uint8_t *)copy.ptr;
  to->f1.len = copy.len;
}

void exports_piko_plugin_request_hook_on_request(exports_piko_plugin_request_hook_borrow_request_t request,
                                                 exports_piko_plugin_request_hook_verdict_t *verdict) {
  piko_plugin_types_response_t *response = &verdict->val.respond;
  verdict->tag = PIKO_PLUGIN_TYPES_VERDICT_RESPOND;
  response->status = 503;
  // The node frees all of this after the call, so each answer is a copy.
  response->headers.len = 2;
  response->headers.ptr = malloc(2 * sizeof *response->headers.ptr);
  response->body.len = page.len;
  response->body.ptr = malloc(page.len);
  if (response->headers.ptr == NULL || response->body.ptr == NULL) abort();
  header(&response->headers.ptr[0], "content-type", "text/html; charset=utf-8");
  header(&response->headers.ptr[1], "retry-after", "60");
  memcpy(response->body.ptr, page.ptr, page.len);
  // A borrowed handle has to be given back before the call ends.
  piko_plugin_http_request_drop_borrow(request);
}
