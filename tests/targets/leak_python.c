/* A CPython extension that leaks what it is told to, from two functions. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static void *volatile kept;

static __attribute__((noipa)) void site_python_malloc(long count, long size)
{
    for (long i = 0; i < count; i++)
        kept = malloc((size_t)size);
}

static __attribute__((noipa)) void site_python_raw(long count, long size)
{
    for (long i = 0; i < count; i++)
        kept = PyMem_RawMalloc((size_t)size);
}

static PyObject *leak(PyObject *self, PyObject *arguments)
{
    long count, size;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "ll", &count, &size))
        return NULL;
    site_python_malloc(count, size);
    site_python_raw(count, size);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"leak", leak, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "leak_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_leak_native(void)
{
    return PyModule_Create(&module);
}
