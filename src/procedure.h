/*
 * procedure.h
 *		What durable procedures ask for (procedure.c), as calls.
 */
#ifndef SAGA_PROCEDURE_H
#define SAGA_PROCEDURE_H

#include "definition.h"

/* The server a request names, or NULL. */
extern char *saga_asked_server(Jsonb *request);

/*
 * The call a request means: its action, or its compensation.  Made in the
 * current memory context; NULL with *problem if its text is no template, NULL
 * without one if there is nothing to undo at a service that has no barrier.
 */
extern SagaCall *saga_asked_call(Jsonb *request, bool undo, bool http,
								 char **problem);

#endif							/* SAGA_PROCEDURE_H */
