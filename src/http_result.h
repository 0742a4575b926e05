/*
 * http_result.h
 *		The result of an HTTP step: its body, and the status beside it.
 *
 * If the body is an object, the result is that object with the member
 * "http_status" added; else it is {"http_status": n, "http_body": body}.
 * Either way ":step" and its paths mean the body, and ":step.http_status" the
 * status.
 */
#ifndef SAGA_HTTP_RESULT_H
#define SAGA_HTTP_RESULT_H

#include "postgres.h"

#include "utils/jsonb.h"

#include "connector.h"

/*
 * What is kept of an answer over HTTP, in the current memory context; NULL if
 * the step keeps none.  *problem is set, for the log, if the body is of no use;
 * the result is then that of an empty body.  Needs a transaction, as
 * saga_result_from_text(), which sees the body only.
 */
extern Jsonb *saga_http_result(const SagaCall *call, const SagaAnswer *answer,
							   char **problem);

/*
 * At the root of a result, about to follow a path: go to the body, if it is
 * one that stands apart and the path does not lead to the status.
 */
extern void saga_http_result_body(int npath, char **path, JsonbValue *root);

#endif							/* SAGA_HTTP_RESULT_H */
