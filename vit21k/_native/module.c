/* The Python module `vit21k._native.extension`: nothing but a name to import.
 *
 * The functions of the other files are exported symbols of the same library; `vit21k._native` calls
 * them through ctypes, which releases the interpreter's lock.  Only the limited API is used, so one
 * build serves every Python from 3.11 on.
 */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "extension", NULL, -1, NULL};

PyMODINIT_FUNC PyInit_extension(void) { return PyModule_Create(&definition); }
