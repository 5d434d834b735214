/* A JNI library that leaks what it is told to. */
#include <jni.h>
#include <stdlib.h>

static void *volatile kept;

static __attribute__((noipa)) void site_jni_malloc(jint count, jint size)
{
    for (jint i = 0; i < count; i++)
        kept = malloc((size_t)size);
}

JNIEXPORT void JNICALL Java_LeakJni_leak(JNIEnv *env, jclass class, jint count, jint size)
{
    (void)env;
    (void)class;
    site_jni_malloc(count, size);
}
