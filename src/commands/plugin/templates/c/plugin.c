// A plugin for Piko: says hello to requests for /hello, and lets all others pass with a header.
#include <string.h>
#include "request_plugin.h"

bool exports_piko_plugin_lifecycle_init(request_plugin_string_t *config, request_plugin_string_t *error) {
  request_plugin_string_free(config);
  return true;
}

void exports_piko_plugin_request_hook_on_request(
    exports_piko_plugin_request_hook_borrow_request_t request, exports_piko_plugin_request_hook_verdict_t *verdict) {
  piko_plugin_http_borrow_request_t req = {request.__handle};
  request_plugin_string_t target;
  piko_plugin_http_method_request_path_with_query(req, &target);
  bool hello = target.len == 6 && memcmp(target.ptr, "/hello", 6) == 0;
  request_plugin_string_free(&target);
  memset(verdict, 0, sizeof *verdict);
  if (hello) {
    request_plugin_string_t body;
    request_plugin_string_dup(&body, "hello from {{name}}\n");
    verdict->tag = PIKO_PLUGIN_TYPES_VERDICT_RESPOND;
    verdict->val.respond.status = 200;
    verdict->val.respond.body.ptr = (uint8_t *)body.ptr;
    verdict->val.respond.body.len = body.len;
  } else {
    request_plugin_string_t name;
    request_plugin_string_set(&name, "x-plugin");
    request_plugin_list_u8_t value = {(uint8_t *)"{{name}}", strlen("{{name}}")};
    piko_plugin_http_edit_error_t error;
    piko_plugin_http_method_request_set_header(req, &name, &value, &error);
    verdict->tag = PIKO_PLUGIN_TYPES_VERDICT_NEXT;
  }
  // A borrowed handle has to be given back before the call ends.
  piko_plugin_http_request_drop_borrow(req);
}
