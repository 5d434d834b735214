/* An N-API addon that leaks what it is told to. */
#include <node_api.h>
#include <stdlib.h>

static void *volatile kept;

static __attribute__((noipa)) void site_node_malloc(uint32_t count, uint32_t size)
{
    for (uint32_t i = 0; i < count; i++)
        kept = malloc(size);
}

static napi_value leak(napi_env env, napi_callback_info info)
{
    size_t argument_count = 2;
    napi_value arguments[2];
    uint32_t count = 0, size = 0;
    napi_get_cb_info(env, info, &argument_count, arguments, NULL, NULL);
    napi_get_value_uint32(env, arguments[0], &count);
    napi_get_value_uint32(env, arguments[1], &size);
    site_node_malloc(count, size);
    return NULL;
}

NAPI_MODULE_INIT()
{
    napi_value function;
    napi_create_function(env, "leak", NAPI_AUTO_LENGTH, leak, NULL, &function);
    napi_set_named_property(env, exports, "leak", function);
    return exports;
}
