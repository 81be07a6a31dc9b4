"""A model of MLServer that sends its inputs back, over a stream once for each request."""

from mlserver import MLModel, types


class Echo(MLModel):
    async def load(self):
        return True

    def answer(self, request):
        outputs = [types.ResponseOutput(**one.model_dump(exclude={"parameters"})) for one in request.inputs]
        return types.InferenceResponse(id=request.id, model_name=self.name, outputs=outputs)

    async def predict(self, request):
        return self.answer(request)

    async def predict_stream(self, requests):
        async for request in requests:
            yield self.answer(request)
